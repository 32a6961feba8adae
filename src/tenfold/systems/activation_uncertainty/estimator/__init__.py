"""The small network that tells uncertainty from activations: fitting, choice of layers, measures of quality."""
