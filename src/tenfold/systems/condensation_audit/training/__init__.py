"""Networks trained on small sets, several at once, and what a set is worth."""
