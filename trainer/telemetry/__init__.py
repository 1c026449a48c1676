"""The records of a run: metrics, curves, moving pictures, traces."""
