"""A fast dual encoder for questions about images, distilled from a fusion encoder's cross-modal attention (DiDE).

The names here load when they are first used; ``__init__.pyi`` says where each lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
