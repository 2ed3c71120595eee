"""Requests: their lengths, their arrivals, recorded files, and how text names them."""
