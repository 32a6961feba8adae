"""Fusion encoder, towers, dual encoder."""
