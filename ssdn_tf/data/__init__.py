"""Image files, training samples and batches."""
