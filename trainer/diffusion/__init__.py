"""The training method that learns to make latents (paper section 3.5): a DiT in one engine."""
