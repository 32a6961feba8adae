"""Filtered ranks and their numbers, calibrated confidence, and the two-encoder ensemble."""
