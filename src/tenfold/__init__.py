"""tenfold: deep networks made smaller, faster and more trustworthy by published methods.

The names here load when they are first used, so that ``import tenfold`` is quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "ActivationUncertainty": "tenfold.systems.activation_uncertainty",
    "UncertainModel": "tenfold.systems.activation_uncertainty",
    "BoostedExitLoss": "tenfold.systems.boosted_exits",
    "EarlyExitModel": "tenfold.systems.boosted_exits",
    "EarlyExitRunner": "tenfold.systems.boosted_exits",
    "attach_exits": "tenfold.systems.boosted_exits",
    "cut": "tenfold.systems.boosted_exits",
    "solve_thresholds": "tenfold.systems.boosted_exits",
    "RelationDistiller": "tenfold.systems.relation_distillation",
    "RelationLoss": "tenfold.systems.relation_distillation",
    "distill_relations": "tenfold.systems.relation_distillation",
    "KnowledgeGraph": "tenfold.systems.graph_fusion",
    "fuse_encoders": "tenfold.systems.graph_fusion",
    "CondensedSet": "tenfold.systems.condensation_audit",
    "Doorping": "tenfold.systems.condensation_audit",
    "NaiveAttack": "tenfold.systems.condensation_audit",
    "audit": "tenfold.systems.condensation_audit",
    "condense": "tenfold.systems.condensation_audit",
    "count_flops": "tenfold.cost",
    "count_parameters": "tenfold.cost",
    "measure_latency": "tenfold.cost",
    "measure_peak_memory": "tenfold.cost",
    "fit": "tenfold.training",
    "load_results": "tenfold.results",
    "Results": "tenfold.results",
    "UserError": "tenfold.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
