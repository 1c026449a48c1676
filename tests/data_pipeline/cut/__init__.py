"""Tests of `data_pipeline/cut/`."""
