"""Tests of `data_pipeline/source/`."""
