"""Condensed sets, in memory and on disk."""
