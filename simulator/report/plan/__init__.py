"""A capacity plan as people see it: what it decides, its tables, its figures."""
