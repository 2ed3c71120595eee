"""The live executor: ragged verification passes on a device."""
