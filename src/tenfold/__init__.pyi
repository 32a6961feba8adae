from .arms import PairedDifference, paired_bootstrap, paired_difference
from .catalog import load
from .cost import count_flops, count_parameters, measure_latency, measure_peak_memory
from .errors import RunStopped, TenfoldWarning, UserError
from .options import TrainerOptions
from .results import Claim, Results, load_results
from .systems.activation_uncertainty import ActivationUncertainty, UncertainModel
from .systems.boosted_exits import (
    BoostedExitLoss,
    EarlyExitModel,
    EarlyExitRunner,
    attach_exits,
    cut,
    solve_thresholds,
)
from .systems.condensation_audit import CondensedSet, Doorping, NaiveAttack, audit, condense
from .systems.full_skip_depth import AdaptiveConcat, FullSkipDepth
from .systems.graph_fusion import KnowledgeGraph, fuse_encoders
from .systems.relation_distillation import RelationDistiller, RelationLoss, distill_relations
from .training import FitResult, fit

__version__: str

__all__ = [
    "ActivationUncertainty",
    "AdaptiveConcat",
    "BoostedExitLoss",
    "Claim",
    "CondensedSet",
    "Doorping",
    "EarlyExitModel",
    "EarlyExitRunner",
    "FitResult",
    "FullSkipDepth",
    "KnowledgeGraph",
    "NaiveAttack",
    "PairedDifference",
    "RelationDistiller",
    "RelationLoss",
    "Results",
    "RunStopped",
    "TenfoldWarning",
    "TrainerOptions",
    "UncertainModel",
    "UserError",
    "attach_exits",
    "audit",
    "condense",
    "count_flops",
    "count_parameters",
    "cut",
    "distill_relations",
    "fit",
    "fuse_encoders",
    "load",
    "load_results",
    "measure_latency",
    "measure_peak_memory",
    "paired_bootstrap",
    "paired_difference",
    "solve_thresholds",
]
