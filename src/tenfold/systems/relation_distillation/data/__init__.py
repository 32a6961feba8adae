"""Images, their views and batches, ADE20K."""
