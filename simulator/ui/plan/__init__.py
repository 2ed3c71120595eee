"""The page Plan: a scenario as a form and as YAML, and what it takes on each GPU."""
