"""Pairs of images and depth: files of all kinds, public data sets, a real drive, and rooms made by ray casting."""
