"""Learning from another network's distribution, and two networks from each other.

    loss_A = tau^2 KL( stop_gradient(p_B) || p_A ),   loss_B = tau^2 KL( stop_gradient(p_A) || p_B )
    p = softmax(logits / tau)

Hinton et al. 2015 (distillation, the factor tau^2) and Zhang et al. 2018 (deep mutual learning).
"""

import torch
from torch import Tensor

_FAR = -1e9
"""Logit of an excluded class: finite, for 0 times infinity is no number."""


def log_probabilities(logits: Tensor, temperature: float = 1.0, allowed: Tensor | None = None) -> Tensor:
    """Log-softmax over the last axis in float32 at least, whatever the precision of the logits.

    Args:
        logits: ``(..., classes)`` raw scores.
        temperature: tau, above 0.
        allowed: which classes take part, of a shape that broadcasts; the others get (almost) no probability.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, _FAR)
    return torch.log_softmax(logits / temperature, -1)


def distillation_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, allowed: Tensor | None = None, reduce: bool = True
) -> Tensor:
    """``tau^2 KL(teacher || student)``, mean over the batch; no gradient reaches the teacher.

    Args:
        student: ``(batch, classes)`` raw scores.
        teacher: ``(batch, classes)`` raw scores.
        temperature: tau, of both.
        allowed: ``(batch, classes)`` or ``(classes,)`` which classes take part; both are renormalized over them.
        reduce: the mean over the batch; else one number per row.

    Returns:
        scalar, or ``(batch,)``.

    Example:
        >>> distillation_kl(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    student_log = log_probabilities(student, temperature, allowed)
    teacher_log = log_probabilities(teacher.detach(), temperature, allowed)
    terms = teacher_log.exp() * (teacher_log - student_log)
    if allowed is not None:
        terms = terms.masked_fill(~allowed, 0.0)
    rows = temperature**2 * terms.sum(-1)
    return rows.mean() if reduce else rows
