"""Networks with exits of their own, as published, and their official checkpoints."""
