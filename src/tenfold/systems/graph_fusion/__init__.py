"""Graph fusion (VEM2L, 2022): a structure and a text encoder of a knowledge graph teach each other; one serves alone.

The names here load when they are first used.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "graph": ["AnswerIndex", "KnowledgeGraph", "drop_unseen", "induced_subset", "leakage", "sparsify", "with_inverses"],
    "data": ["load_graph"],
    "scorers": ["QueryScorer", "check_scorer"],
    "structure": ["ComplEx", "ConvE", "DistMult", "HAKE", "RotatE", "TransE"],
    "compgcn": ["CompGCN"],
    "hash_text": ["HashText"],
    "transformers_text": ["BiEncoder", "PairScorer"],
    "pykeen_adapter": ["PyKEENScorer"],
    "encoders": ["build_encoder"],
    "method": ["bucket_kl", "evidence_lower_bound", "full_scores_loss", "kl_parts", "mutual_loss"],
    "objectives": ["Learning"],
    "queries": ["sample_unobserved"],
    "densification": ["densify"],
    "settings": ["FusionOptions"],
    "fusion": ["Fusion"],
    "fuse": ["FusionResult", "fuse_encoders"],
    "metrics": ["Ranks", "evaluate_encoder", "paired_bootstrap", "rank_queries", "summarise_groups", "summarise_ranks"],
    "ensemble": ["Ensemble", "fit_ensemble"],
    "student": ["Prediction", "Student"],
    "calibration": ["fit_temperature"],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
