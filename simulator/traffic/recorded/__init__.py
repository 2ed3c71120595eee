"""Recorded requests: files in the layouts that serving systems write."""
