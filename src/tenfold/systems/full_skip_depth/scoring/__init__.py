"""The field's protocol: metrics, crops, alignment, boundaries, and a scorer of anybody's prediction files."""
