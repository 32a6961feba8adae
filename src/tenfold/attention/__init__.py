"""Attention layers of any network: found, tapped, aligned."""
