"""Backdoor attacks on condensation, and how their success is counted."""
