"""The serving model: one replica that admits, prefills, decodes step by step, and what a run measures."""
