"""Poses, calibrations and boxes."""
