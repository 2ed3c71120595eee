"""What a person sees: figures, tables on the terminal, the one-file page."""
