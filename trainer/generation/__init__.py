"""Measuring generated video: Frechet distances, class agreement, memorisation, and the protocol of all of them."""
