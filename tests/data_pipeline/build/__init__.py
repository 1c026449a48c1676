"""Tests of `data_pipeline/build/`."""
