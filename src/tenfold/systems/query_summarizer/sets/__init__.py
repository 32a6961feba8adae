"""Topics: readers of the public sets of query-focused summarisation, and of JSONL of one's own."""
