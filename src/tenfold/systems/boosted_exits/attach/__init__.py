"""Exits on any network: heads on its modules, and real stages cut out of it."""
