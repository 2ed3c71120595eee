"""Service levels: terms as text, what a run delivered, and whether it kept them."""
