"""Pages that show a person what became of a source, and what a dataset holds."""
