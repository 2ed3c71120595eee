"""Verification policies beyond the paper's: they learn from their own steps, or know what users need."""
