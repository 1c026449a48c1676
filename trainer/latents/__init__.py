"""Encoding clips into latents: the model in a worker, a unit of work, and the run over all units."""
