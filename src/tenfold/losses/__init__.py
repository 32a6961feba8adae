"""Losses that two or more systems share."""

from tenfold.losses.relations import (
    KERNELS,
    Kernel,
    relation_agreement,
    relation_kl,
    relation_mse,
    row_weights,
)

__all__ = ["KERNELS", "Kernel", "relation_agreement", "relation_kl", "relation_mse", "row_weights"]
