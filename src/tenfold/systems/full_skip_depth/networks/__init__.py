"""Encoders, whole depth networks, and others' networks and weights."""
