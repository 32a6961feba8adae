"""Graph fusion (VEM2L, 2022): a structure and a text encoder of a knowledge graph teach each other; one serves alone.

The names here load when they are first used; the stub beside this file says where they live.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
