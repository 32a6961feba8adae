"""Vision transformers of the paper: built, masked, read from official files."""
