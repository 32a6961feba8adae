"""The detectors and repairs, published ones and the patch scan, each of them on its own."""
