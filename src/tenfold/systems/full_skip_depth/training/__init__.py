"""Losses, augmentation and the published training recipes."""
