"""Which kinds of targets run here, and what each needs of a key-value cache."""
