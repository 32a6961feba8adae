"""Uncertainty without sampling and without learning: closed form and moment propagation."""
