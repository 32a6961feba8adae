"""The networks: encodings of coordinates, decoder, heads, and the branches of camera and LiDAR."""
