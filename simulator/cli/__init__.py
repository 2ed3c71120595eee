"""The command line ``dspark-sim``."""
