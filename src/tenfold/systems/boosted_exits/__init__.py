"""Boosted early exits."""
