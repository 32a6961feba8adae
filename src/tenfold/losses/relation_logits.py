"""What all forms of the relation loss share: logits, masks, weights of rows, and the formula itself.

Logits are accumulated and kept in float32 whatever the inputs' type is, float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in float32, or float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()


def relation_logits(a: Tensor, b: Tensor, scale: float, added: Tensor | None = None) -> Tensor:
    """``scale * a b^T + added``, ``(batch, heads, N, N)``, in float32 at least."""
    logits = torch.matmul(wide(a), wide(b).transpose(-1, -2)) * scale
    return logits if added is None else logits + added


def row_weights(mask: Tensor | None, like: Tensor) -> Tensor:
    """Weight of each row in the mean, ``(batch, N)``: a mean over a sample's real rows, then over samples.

    Args:
        mask: ``(batch, N)`` booleans, true for real tokens; all are real where ``None``.
        like: ``(batch, heads, N, d)``; gives size, device and type (float32 at least).
    """
    batch, _, tokens, _ = like.shape
    kind = wide(like[:0]).dtype
    if mask is None:
        return torch.full((batch, tokens), 1 / (batch * tokens), dtype=kind, device=like.device)
    real = mask.to(kind)
    counts = real.sum(-1, keepdim=True)
    return real / counts.clamp(min=1) / (counts > 0).sum().clamp(min=1)


def additive_mask(mask: Tensor | None, causal: bool, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """Padding, causal order and bias as one addend of the logits, broadcast to ``(batch, heads, N, N)``, or ``None``.

    Excluded columns get the type's smallest number rather than minus infinity, so that a row of padding alone has a
    uniform relation and no NaN.
    """
    if mask is None and not causal and bias is None:
        return None
    kind = wide(like[:0]).dtype
    lowest = torch.finfo(kind).min
    added = torch.zeros((1, 1, 1, 1), dtype=kind, device=like.device) if bias is None else wide(bias)
    if mask is not None:
        added = added.masked_fill(~mask[:, None, None, :], lowest)
    if causal:
        tokens = like.shape[-2]
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=like.device).triu(1)
        added = added.masked_fill(later, lowest)
    return added.clamp(min=lowest)


def direct_kl(
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    scale_s: float,
    scale_t: float,
    added_s: Tensor | None,
    added_t: Tensor | None,
    weights: Tensor,
) -> Tensor:
    """The divergence by autograd on the formula; the arguments of every form, see `tenfold.losses.relations`."""
    log_p = relation_logits(a_s, b_s, scale_s, added_s).log_softmax(-1)
    log_t = relation_logits(a_t, b_t, scale_t, added_t).log_softmax(-1)
    rows = (log_t.exp() * (log_t - log_p)).sum(-1)
    return (rows.mean(1) * weights).sum()


def differentiable_gradients(gradient: Tensor, needed: tuple[bool, bool], a_s: Tensor, b_s: Tensor, *rest: Any) -> list:
    """Gradients of the student's rows and columns with a graph of their own, for gradients of gradients.

    A fused form keeps numbers, which autograd would take for constants; the formula is differentiated instead.

    Args:
        gradient: that of the divergence.
        needed: whether rows and columns want one.
        a_s: see `direct_kl`, as all others.
        b_s: student's columns; may be the rows themselves.
        rest: the further arguments of `direct_kl`.
    """
    # Views of their own tell rows from columns where both are one tensor.
    sides = [x.view_as(x) for x in (a_s, b_s)]
    value = direct_kl(sides[0], sides[1], *rest)
    wanted = [side for side, need in zip(sides, needed, strict=True) if need]
    found = iter(torch.autograd.grad(value, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]
