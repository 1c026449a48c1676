"""Objects in a local folder or an S3 bucket behind one interface. Nothing in this folder knows about clips."""
