"""How networks are measured."""
