"""Every setting of a training run; importing it loads nothing that computes."""
