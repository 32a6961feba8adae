"""WikiRef: examples of query, document and summary, built from a Wikipedia dump and the pages it cites."""
