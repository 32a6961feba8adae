"""Dropout uncertainty from activation strength: how unsure a network is, told by one ordinary pass.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "method": ["ActivationUncertainty", "ensemble_labels"],
    "serving": ["FeatureRange", "Scores", "UncertainModel", "load_estimator"],
    "dropout": ["DropoutController"],
    "sites": ["DropoutSite", "find_dropout"],
    "passes": ["DropoutLabels", "dropout_labels"],
    "labelling": ["label_to_folder", "read_labels"],
    "targets": ["Target"],
    "features": ["ActivationFeatures"],
    "activations": ["find_activations"],
    "estimator": ["Estimator", "fit_estimator"],
    "joint": ["JointTask"],
    "selection": ["LayerSelection", "select_layers"],
    "analytic": [
        "LinearCalibration",
        "MomentPropagation",
        "closed_form_covariance",
        "closed_form_variance",
        "delta_method",
    ],
    "metrics": ["Quality", "equivalent_passes", "overlap_at", "quality", "retention_area", "retention_curve"],
    "movielens": ["Ratings", "SyntheticMovieLens", "load_movielens", "synthetic_movielens"],
    "criteo": ["CriteoEncoder", "load_criteo", "stream_criteo"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
