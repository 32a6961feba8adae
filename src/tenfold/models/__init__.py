"""Models on disk and in other people's hands: builders by name, weights, model folders, ONNX, taps on layers."""
