"""Sentence labels made from reference summaries, where nobody has marked sentences."""
