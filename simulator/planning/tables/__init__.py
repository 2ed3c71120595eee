"""The tables of a plan."""
