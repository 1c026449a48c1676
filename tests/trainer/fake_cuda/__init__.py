"""Training steps on fake tensors on `cuda:0`, on a machine without a GPU."""
