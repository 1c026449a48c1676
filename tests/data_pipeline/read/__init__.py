"""Tests of `data_pipeline/read/`."""
