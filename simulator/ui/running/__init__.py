"""Long work: in processes of its own, and as a page shows it."""
