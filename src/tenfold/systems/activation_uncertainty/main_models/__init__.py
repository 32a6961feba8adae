"""The main models of the experiment."""
