"""Weight mapping: a trained seed's weights for a network of other depth, width, expansion, kernels or operators."""
