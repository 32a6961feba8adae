"""Questions about images: generated sets, published formats, a reader's own folder."""
