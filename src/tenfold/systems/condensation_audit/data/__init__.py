"""Real images: read, split, normalized, whitened."""
