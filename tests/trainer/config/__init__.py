"""Tests of `trainer/config/`."""
