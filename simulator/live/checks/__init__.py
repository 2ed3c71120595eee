"""Live runs beside simulated ones, and beside other implementations."""
