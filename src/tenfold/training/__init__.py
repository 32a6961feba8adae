"""How everything here trains: ``fit`` on Lightning's Trainer; where it runs is ``TrainerOptions`` only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
