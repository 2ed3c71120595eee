"""The page Explore: policies side by side on one deployment, and an SLA that moves the winner."""
