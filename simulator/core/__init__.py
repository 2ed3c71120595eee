"""The lowest floor: errors, files, units, provenance, random streams and statistics."""
