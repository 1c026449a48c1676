"""Tests of `data_pipeline/report/`."""
