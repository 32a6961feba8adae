"""Relation distillation (TinyMIM, CVPR 2023): a small ViT learns the token relations of a large self-supervised one.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "method": ["RelationDistiller", "RelationLoss"],
    "freezing": ["freeze_unreached"],
    "layers": ["AttentionLayer", "Tap", "attention_layers"],
    "taps": ["tap", "tap_layers"],
    "alignment": [
        "common_tokens",
        "heads_per_block",
        "regrouped",
        "relation_heads",
        "set_heads",
        "set_heads_per_block",
    ],
    "distilling": ["Distilled", "distill_relations"],
    "targets": ["FeatureDistiller"],
    "checkpoints": ["from_transformers", "load_decoder", "load_official", "to_transformers"],
    "star": ["TinyMIMStar"],
    "segmentation": ["SegmentationNetwork", "evaluate_segmentation", "train_segmentation"],
    "finetune": ["finetune"],
    "metrics": ["SegmentationScore", "knn_accuracy", "linear_accuracy", "mean_corruption_error"],
    "model": ["load_backbone", "set_drop_path", "sincos_positions", "vision_transformer"],
    "mae": ["MAEDecoder", "MaskedAutoencoder"],
    "masking": ["PatchMasks", "keep_patches", "random_patches"],
    "views": ["FixedViews", "TeacherCache"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
