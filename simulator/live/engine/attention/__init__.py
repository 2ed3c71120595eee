"""Attention of ragged rows: whose row is whose, the kernels, and the target that runs with them."""
