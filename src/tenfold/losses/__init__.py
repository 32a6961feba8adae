"""Losses that systems share."""

from tenfold.losses.mutual import distillation_kl, log_probabilities

__all__ = ["distillation_kl", "log_probabilities"]
