"""Drafts by kind: DSpark and DFlash, DeepSeek-V4's, and drafters of one layer that runs once a token."""
