"""Tools that build or measure what the package ships; not in the wheel."""
