"""Tests of `data_pipeline/dataset/`."""
