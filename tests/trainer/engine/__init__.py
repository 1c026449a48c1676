"""Tests of `trainer/engine/`."""
