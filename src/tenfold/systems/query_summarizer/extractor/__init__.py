"""Extractors: what gives every sentence a score for a query."""
