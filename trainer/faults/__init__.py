"""What may happen to a run from outside, and what it does about it."""
