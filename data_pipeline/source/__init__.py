"""A row of a manifest, and a local file for it."""
