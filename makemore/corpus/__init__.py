"""Text to documents to splits to batches."""
