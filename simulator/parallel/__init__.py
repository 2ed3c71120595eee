"""Independent cells run in parallel, kept on disk and resumed."""
