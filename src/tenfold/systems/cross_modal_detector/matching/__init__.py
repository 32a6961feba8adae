"""Predictions against true boxes: box codes, matching, losses, denoising."""
