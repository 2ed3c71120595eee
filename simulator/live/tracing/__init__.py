"""Acceptance, recorded from a real pair."""
