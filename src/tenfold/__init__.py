"""tenfold: deep networks made smaller, faster and more trustworthy by published methods.

The names here, listed with their types in ``__init__.pyi``, load when they are first used, so that ``import tenfold``
is quick.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
