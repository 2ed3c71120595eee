"""Run independent cells in parallel, keep them on disk, and resume."""
