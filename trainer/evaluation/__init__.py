"""Measuring and showing reconstructions: metrics, sources of windows, reports."""
