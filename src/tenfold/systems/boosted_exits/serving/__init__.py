"""Serving that really stops: in PyTorch, with regrouped batches, in ONNX."""
