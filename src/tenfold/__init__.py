"""tenfold: deep networks made smaller, faster and more trustworthy by published methods."""

__version__ = "0.1.0"
