"""How long a step takes: curves, additive models, drafters, and how they are fitted to measured cells."""
