"""Losses that two or more systems share."""

from tenfold.losses.cross_relations import cross_relation_kl
from tenfold.losses.mutual import distillation_kl, log_probabilities
from tenfold.losses.relation_logits import row_weights
from tenfold.losses.relations import (
    KERNELS,
    Kernel,
    relation_agreement,
    relation_kl,
    relation_mse,
)

__all__ = [
    "KERNELS",
    "Kernel",
    "cross_relation_kl",
    "distillation_kl",
    "log_probabilities",
    "relation_agreement",
    "relation_kl",
    "relation_mse",
    "row_weights",
]
