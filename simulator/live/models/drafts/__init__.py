"""Drafters of one layer that runs once a token, and the parts that variants of DSpark are made of."""
