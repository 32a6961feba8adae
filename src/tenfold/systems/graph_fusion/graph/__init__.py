"""Knowledge graphs: read from files, split, thinned, and asked for known answers."""
