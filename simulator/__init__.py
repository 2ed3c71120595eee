"""DSpark simulator: what confidence-scheduled speculative decoding is worth, before you deploy it."""
