"""Objects somewhere: a local folder or an S3 bucket behind one interface. It knows nothing of clips."""
