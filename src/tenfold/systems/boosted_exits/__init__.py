"""Boosted early exits (BoostNet, AAAI 2023): answer easy inputs early, train the heads as one boosted model.

The names here load when they are first used; ``__init__.pyi`` says where each lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
