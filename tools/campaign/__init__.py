"""A device measured part by part."""
