"""Encoders: a compact BERT, any BERT-like model from a local folder, frozen sentence vectors."""
