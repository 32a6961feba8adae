"""Readers of published data sets: each gives labelled images in memory, or one line about what is wrong."""
