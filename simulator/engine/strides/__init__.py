"""The step loop compiled: many steps between two events, bit for bit those of ``engine.engine``."""
