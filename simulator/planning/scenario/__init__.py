"""A scenario: its parts, the whole, and the file that it is read from."""
