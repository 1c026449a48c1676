"""Tests of data_pipeline/latents."""
