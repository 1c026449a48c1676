"""A dataset of texts: its plan, and how it follows the captions of the latents that it is made of."""
