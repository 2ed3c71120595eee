"""Targets and drafts, their layers, caches and checkpoints."""
