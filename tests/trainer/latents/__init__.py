"""Tests of `trainer/latents/`, and of `data_pipeline/latents/` together with a model."""
