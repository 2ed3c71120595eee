"""Time of an engine step: curves, additive models, drafters, and fits to measured cells."""
