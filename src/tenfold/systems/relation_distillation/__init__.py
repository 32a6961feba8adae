"""Relation distillation (TinyMIM, CVPR 2023): a small ViT learns the token relations of a large self-supervised one.

The names of the stub beside this file load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
