"""The published DSpark figures: fits to them and checks against them."""
