"""Backbone search (arXiv 2211.02791): the accuracy-cost front of detectors on your data, by weight mapping."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
