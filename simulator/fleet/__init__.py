"""Replicas behind a router."""
