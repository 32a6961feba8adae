"""Decoders from a pyramid of features to dense maps, and the heads that give them a range."""
