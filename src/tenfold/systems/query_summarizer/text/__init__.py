"""Text: sentences with their places in the source, words, WordPiece tokens, files of one's own."""
