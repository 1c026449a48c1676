"""Reading a dataset for training and evaluation: order, local copies, decoding, batches."""
