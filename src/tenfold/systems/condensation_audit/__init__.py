"""Condensation and its security audit: small synthetic training sets, and whether one carries a backdoor.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "sets": ["CondensedSet", "Preprocessing", "TrainingRecipe"],
    "zca": ["ZCA", "fit_zca"],
    "networks": ["make_network"],
    "ensembles": ["Ensemble", "train_together"],
    "augmentation": ["apply_augmentation", "draw_augmentation"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
