"""What every other package stands on: errors, files, units, provenance, random streams, statistics."""
