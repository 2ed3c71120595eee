"""What a device costs: measured cells and the profile fitted to them."""
