"""What leaves the house: ONNX files, coloured pictures, point clouds, the benchmark server's archive."""
