"""Encoders of a graph: scores of all entities for queries, by structure or by texts."""
