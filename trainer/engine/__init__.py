"""Networks under DeepSpeed: the only place that knows it."""
