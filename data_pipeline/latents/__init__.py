"""A dataset of latents: its samples, its plan, and how both follow the clips that it is made of."""
