"""Any network, as it is given: calling it, its dropout, its activations, and whether it is still the same."""
