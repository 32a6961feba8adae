from .arms import PairedDifference, paired_bootstrap, paired_difference
from .catalog import load, load_network
from .cost.measuring import count_flops, count_parameters, measure_latency, measure_peak_memory
from .errors import RunStopped, TenfoldWarning, UserError
from .results import Claim, Results, load_results
from .sparse import SparseTuner, find_mask
from .systems.activation_uncertainty import ActivationUncertainty, UncertainModel
from .systems.backbone_search import SearchSpace, YOLOXLite, map_weights, search_backbones
from .systems.boosted_exits import (
    BoostedExitLoss,
    EarlyExitModel,
    EarlyExitRunner,
    attach_exits,
    cut,
    solve_thresholds,
)
from .systems.condensation_audit import CondensedSet, Doorping, NaiveAttack, audit, condense
from .systems.cross_modal_detector import CoordinateEncoding, CrossModalDetector
from .systems.dual_encoder import CrossModalAttentionLoss, DualEncoder
from .systems.full_skip_depth import AdaptiveConcat, FullSkipDepth
from .systems.graph_fusion import KnowledgeGraph, fuse_encoders
from .systems.query_summarizer import QuerySummarizer, build_wikiref
from .systems.relation_distillation import RelationDistiller, RelationLoss, distill_relations
from .training.fitting import FitResult, fit
from .training.options import TrainerOptions

__version__: str

__all__ = [
    "ActivationUncertainty",
    "AdaptiveConcat",
    "BoostedExitLoss",
    "Claim",
    "CondensedSet",
    "CoordinateEncoding",
    "CrossModalAttentionLoss",
    "CrossModalDetector",
    "Doorping",
    "DualEncoder",
    "EarlyExitModel",
    "EarlyExitRunner",
    "FitResult",
    "FullSkipDepth",
    "KnowledgeGraph",
    "NaiveAttack",
    "PairedDifference",
    "QuerySummarizer",
    "RelationDistiller",
    "RelationLoss",
    "Results",
    "RunStopped",
    "SearchSpace",
    "SparseTuner",
    "TenfoldWarning",
    "TrainerOptions",
    "UncertainModel",
    "UserError",
    "YOLOXLite",
    "attach_exits",
    "audit",
    "build_wikiref",
    "condense",
    "count_flops",
    "count_parameters",
    "cut",
    "distill_relations",
    "find_mask",
    "fit",
    "fuse_encoders",
    "load",
    "load_network",
    "load_results",
    "map_weights",
    "measure_latency",
    "measure_peak_memory",
    "paired_bootstrap",
    "paired_difference",
    "search_backbones",
    "solve_thresholds",
]
