"""What a run measures, and whether a line of requests grows."""
