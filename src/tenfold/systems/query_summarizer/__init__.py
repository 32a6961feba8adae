"""Summaries that answer a question with citable sentences (Q-BERT), and the WikiRef builder.

The names here load when they are first used.
"""
