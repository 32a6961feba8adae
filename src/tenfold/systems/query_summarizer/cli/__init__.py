"""What the command line offers of the query summarizer."""
