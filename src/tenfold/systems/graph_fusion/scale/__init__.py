"""Millions of entities: scores in tiles and shards, exactly, within a memory budget."""
