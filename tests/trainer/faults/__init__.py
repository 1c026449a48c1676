"""Tests of `trainer/faults/`."""
