"""Recorded engine steps, decided again: what differs and why, and what others would have given."""
