"""Tests of `trainer/telemetry/`."""
