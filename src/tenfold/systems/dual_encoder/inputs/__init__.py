"""From questions and image files to batches."""
