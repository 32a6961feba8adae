"""Monocular depth with full skip connections (FSCN): metres per pixel, trained on your pairs, scored by the protocol.

The names here load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
