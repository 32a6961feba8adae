"""Dropout uncertainty from activation strength: how unsure a network is, told by one ordinary pass.

The names here load when they are first used; ``__init__.pyi`` says where each one is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
