"""What a run says of itself: rows, curves, pictures, traces."""
