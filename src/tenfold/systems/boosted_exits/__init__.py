"""Boosted early exits (BoostNet, AAAI 2023): answer easy inputs early, train the heads as one boosted model.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "method": ["BoostedExitLoss", "ensemble_logits", "rescale_gradient"],
    "model": ["EarlyExitModel", "small_cnn"],
    "msdnet": ["MSDNet", "published_msdnet"],
    "ranet": ["RANet", "published_ranet"],
    "attach": ["AttachedExits", "attach_exits", "trainable_parameter_groups"],
    "cutting": ["CutModel", "cut"],
    "policies": ["ExitPolicy", "ExitRecords", "PolicyOutcome", "assign_exits", "evaluate_policy", "record_exits"],
    "thresholds": ["control_risk", "flat_curve", "geometric_family", "search_front", "solve_thresholds"],
    "metrics": ["area_under_curve", "calibration_errors", "exit_accuracies", "exit_costs", "hard_share"],
    "serving": ["EarlyExitRunner", "ExitOutputs", "simulate"],
    "regrouping": ["RegroupingServer"],
    "onnx": ["OnnxStages", "export_branching", "export_staged"],
    "checkpoints": ["load_official", "official_to_ours", "ours_to_official", "parse_official_arguments"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
