"""Tests of `launch/demo/`."""
