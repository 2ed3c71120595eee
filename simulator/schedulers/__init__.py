"""Verification policies: how many draft tokens of each request the target verifies."""
