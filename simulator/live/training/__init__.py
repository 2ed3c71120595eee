"""How small pairs are trained."""
