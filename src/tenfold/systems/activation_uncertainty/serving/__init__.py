"""One pass, two answers: the served model, on disk and as ONNX."""
