"""Cross-modal 3-D detection (CMT): boxes from cameras and LiDAR in one decoder, and from either alone.

The names here load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
