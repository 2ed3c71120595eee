"""The page Check: predictions beside published and measured results, and an engine's own file explained."""
