"""Search spaces: genes, canonical genomes, the networks they stand for."""
