"""Condensation and its security audit: small synthetic training sets, and whether one carries a backdoor.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "condensing": ["condense"],
    "sets": ["CondensedSet", "Preprocessing", "TrainingRecipe"],
    "set_files": ["load_set", "save_set", "verify_set"],
    "official_files": ["read_official"],
    "official_weights": ["read_network", "read_replay_buffer", "read_trigger"],
    "real_images": ["RealData", "real_data"],
    "distribution_matching": ["DistributionMatchingSettings"],
    "gradient_matching": ["GradientMatchingSettings", "class_gradients", "gradient_distance"],
    "trajectory_matching": ["TrajectoryMatchingSettings"],
    "experts": ["ExpertSettings", "train_experts"],
    "dataset_distillation": ["DatasetDistillationSettings"],
    "augmentation": ["apply_augmentation", "draw_augmentation"],
    "zca": ["ZCA", "fit_zca"],
    "networks": ["make_network"],
    "ensembles": ["Ensemble", "train_together"],
    "quality": ["evaluate_set", "ranking_score", "train_on"],
    "triggers": ["Poisoner", "Trigger", "random_patch", "white_patch"],
    "naive_attack": ["NaiveAttack"],
    "doorping": ["Doorping"],
    "attack_metrics": ["attack_success", "measure_attack"],
    "patch_scan": ["PatchScan", "scan_patches"],
    "mask_inversion": ["neural_cleanse"],
    "neuron_stimulation": ["stimulate_neurons"],
    "input_blending": ["strip"],
    "feature_clusters": ["activation_clustering"],
    "feature_spectra": ["spectral_signatures"],
    "fine_pruning": ["fine_prune", "fine_tune"],
    "range_guard": ["RangeGuard", "check_range"],
    "calibration": ["Calibration", "load_calibration"],
    "calibrating": ["CalibrationPlan", "calibrate"],
    "auditing": ["audit", "audit_model"],
    "audit_report": ["AuditReport"],
    "art_adapter": ["to_art"],
    "detectors": ["run_detectors"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
