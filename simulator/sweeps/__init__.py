"""Policies over load and seeds: frontiers, comparisons, load bands, regret."""
