"""Tables of the documentation, made from committed results: a file per system, each with its ``PARTS``."""
