"""Divergence of the token relations of two attention layers, in forms that hold no ``N x N`` map.


    S = c_s A B^T          student's logits        T = c_t U W^T          teacher's logits
    KL_i = sum_j softmax(T)_ij (log softmax(T)_ij - log softmax(S)_ij)    row i, in nats
    loss = mean of KL over samples, heads and rows

`relation_kl` is the one entry. Its forms give the same number and the same gradients:

``direct``
    Autograd on the formula, with log-softmax; holds several maps of ``batch x heads x N x N``.
``chunked``
    Blocks of heads and rows, on any device: logits of a block, its divergence and its gradients, then the next block.
``triton``
    One fused kernel on CUDA (`tenfold.losses.relations_triton`).

Logits are accumulated and kept in float32 whatever the inputs' type is, float64 for float64; gradients of float16
inputs are scaled by a gradient scaler's factor before they are rounded. Gradients of gradients are those of ``direct``.
"""

import contextlib
from typing import Literal, get_args

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.losses.relation_logits import additive_mask, direct_kl, relation_logits, row_weights
from tenfold.losses.relations_chunked import ChunkedKL

Kernel = Literal["auto", "direct", "chunked", "triton"]
"""How `relation_kl` is computed; the value does not depend on it."""
KERNELS: tuple[str, ...] = get_args(Kernel)


def relation_kl(
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    bias_s: Tensor | None = None,
    bias_t: Tensor | None = None,
    kernel: Kernel = "auto",
    chunk: int | None = None,
) -> Tensor:
    """Mean row-wise divergence ``KL(teacher || student)`` of two relations (TinyMIM, eq. 4, 5 and 9).

    With queries and keys it compares attention maps, with values twice the value relations, and so on for any pair.

    Args:
        a_s: ``(batch, heads, N, d_s)`` student's rows, such as queries.
        b_s: ``(batch, heads, N, d_s)`` student's columns, such as keys; may be ``a_s`` itself.
        a_t: ``(batch, heads, N, d_t)`` teacher's rows. Constant: it gets no gradient.
        b_t: ``(batch, heads, N, d_t)`` teacher's columns. Constant.
        scale_s: factor of the student's logits; ``d_s ** -0.5``, of its own head width, where ``None``.
        scale_t: factor of the teacher's logits; ``d_t ** -0.5`` where ``None``.
        mask: ``(batch, N)`` booleans, true for real tokens. Padding is taken out of the columns before the softmax and
            out of the mean over rows, which is then taken per sample first; samples of padding alone are left out.
        causal: whether a row sees only the columns up to its own, on both sides.
        bias_s: added to the student's scaled logits, broadcast to ``(batch, heads, N, N)``.
        bias_t: added to the teacher's.
        kernel: see the module. ``auto`` takes ``triton`` on CUDA where it can, else ``chunked``; ``direct`` where a
            gradient of ``bias_s`` is asked for.
        chunk: rows of a block of ``chunked``; chosen by size where ``None``.

    Returns:
        Scalar, at least 0 up to rounding; at most ``log N`` above for a uniform student.

    Raises:
        UserError: numbers of samples, heads or tokens differ, or the kernel cannot do what is asked.

    Example:
        >>> q, k = torch.randn(2, 1, 3, 5, 8).unbind()
        >>> float(relation_kl(q, k, q, k)) < 1e-6
        True
    """
    _check(a_s, b_s, a_t, b_t, mask, kernel)
    scale_s = a_s.shape[-1] ** -0.5 if scale_s is None else scale_s
    scale_t = a_t.shape[-1] ** -0.5 if scale_t is None else scale_t
    a_t, b_t = a_t.detach(), b_t.detach()
    bias_t = None if bias_t is None else bias_t.detach()
    learns_bias = bias_s is not None and bias_s.requires_grad and torch.is_grad_enabled()
    plain = mask is None and not causal and bias_s is None and bias_t is None
    if kernel == "auto":
        kernel = "direct" if learns_bias else _automatic(a_s, plain)
    if learns_bias and kernel != "direct":
        raise UserError(f"the {kernel} form gives bias_s no gradient; use kernel='direct' or 'auto'")
    weights = row_weights(mask, a_s)
    with _no_autocast(a_s.device):
        if kernel == "triton":
            if not plain:
                raise UserError("the triton form takes no mask, bias or causal order; use kernel='auto'")
            from tenfold.losses.relations_triton import triton_kl

            return triton_kl(a_s, b_s, a_t, b_t, scale_s, scale_t)
        added_s = additive_mask(mask, causal, bias_s, a_s)
        added_t = additive_mask(mask, causal, bias_t, a_s)
        if kernel == "direct":
            return direct_kl(a_s, b_s, a_t, b_t, scale_s, scale_t, added_s, added_t, weights)
        return ChunkedKL.apply(a_s, b_s, a_t, b_t, scale_s, scale_t, added_s, added_t, weights, chunk)


def relation_mse(
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the scaled logits of two relations: the ablation without softmax.

    The paper gives results without softmax but not the loss; this one is reconstructed.

    Args:
        a_s: see `relation_kl`, as all others.
        b_s: student's columns.
        a_t: teacher's rows.
        b_t: teacher's columns.
        scale_s: factor of the student's logits.
        scale_t: factor of the teacher's logits.
        mask: real tokens; padding is left out of rows and columns.
    """
    _check(a_s, b_s, a_t, b_t, mask, "direct")
    with _no_autocast(a_s.device):
        student = relation_logits(a_s, b_s, a_s.shape[-1] ** -0.5 if scale_s is None else scale_s)
        teacher = relation_logits(a_t, b_t, a_t.shape[-1] ** -0.5 if scale_t is None else scale_t)
        squares = (student - teacher.detach()).square()
        if mask is None:
            return squares.mean()
        columns = mask.to(squares.dtype)[:, None, None]
        rows = (squares * columns).sum(-1) / columns.sum(-1).clamp(min=1)
        return (rows.mean(1) * row_weights(mask, a_s)).sum()


@torch.no_grad()
def relation_agreement(
    a_s: Tensor,
    b_s: Tensor,
    a_t: Tensor,
    b_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    bias_s: Tensor | None = None,
    bias_t: Tensor | None = None,
    top: int = 5,
) -> tuple[Tensor, Tensor]:
    """How far a student agrees with its teacher, in numbers that mean the same for any network.

    The relations of untrained networks are nearly uniform, so that the bare divergence starts small and falls fast.

    Args:
        a_s: see `relation_kl`, as all others but the last.
        b_s: student's columns.
        a_t: teacher's rows.
        b_t: teacher's columns.
        scale_s: factor of the student's logits.
        scale_t: factor of the teacher's logits.
        mask: real tokens.
        causal: whether a row sees only the columns up to its own.
        bias_s: added to the student's scaled logits.
        bias_t: added to the teacher's.
        top: number of tokens of a row that count as those it attends to; all that it sees where those are fewer.

    Returns:
        ``(overlap, share)``: mean overlap, in [0, 1], of the ``top`` tokens of each row in both relations; and the
        divergence as a share of that of a student that attends evenly to all that it sees.
    """
    _check(a_s, b_s, a_t, b_t, mask, "direct")
    weights = row_weights(mask, a_s)
    added_s, added_t = (additive_mask(mask, causal, bias, a_s) for bias in (bias_s, bias_t))
    with _no_autocast(a_s.device):
        student = relation_logits(a_s, b_s, a_s.shape[-1] ** -0.5 if scale_s is None else scale_s, added_s)
        teacher = relation_logits(a_t, b_t, a_t.shape[-1] ** -0.5 if scale_t is None else scale_t, added_t)
        seen = [_seen(added, logits) for added, logits in ((added_s, student), (added_t, teacher))]
        top = min(top, student.shape[-1])
        # The columns that a row does not see come last: the first ones of the shorter count are all seen.
        counted = torch.minimum(*seen).clamp(1, top)[..., None]
        first = torch.arange(top, device=student.device) < counted
        chosen = student.topk(top, -1).indices[..., None] == teacher.topk(top, -1).indices[..., None, :]
        common = (chosen & first[..., None] & first[..., None, :]).any(-1).sum(-1)
        overlap = common.to(weights.dtype) / counted[..., 0]
        log_p, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
        kept = (log_t.exp() * (log_t - log_p)).sum(-1)
        uniform = (log_t.exp() * log_t).sum(-1) + seen[0].to(log_t.dtype).clamp(min=1).log()
    divergence, reference = ((part.mean(1) * weights).sum() for part in (kept, uniform))
    return (overlap.mean(1) * weights).sum(), divergence / reference.clamp(min=torch.finfo(reference.dtype).tiny)


def _seen(added: Tensor | None, logits: Tensor) -> Tensor:
    """How many columns each row sees, ``(batch, heads, N)``."""
    if added is None:
        return torch.full(logits.shape[:-1], logits.shape[-1], device=logits.device)
    return (added > torch.finfo(added.dtype).min / 2).expand_as(logits).sum(-1)


def _automatic(a_s: Tensor, plain: bool) -> Kernel:
    if a_s.is_cuda and plain and a_s.dtype != torch.float64:
        with contextlib.suppress(UserError):
            from tenfold.losses.relations_triton import require_triton

            require_triton()
            return "triton"
    return "chunked"


def _no_autocast(device: torch.device) -> torch.autocast:
    """Logits in bfloat16 would be wrong by 1e-2 in the exponent."""
    return torch.autocast(device.type, enabled=False)


def _check(a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, mask: Tensor | None, kernel: str) -> None:
    if kernel not in KERNELS:
        raise UserError(f"kernel must be one of {', '.join(KERNELS)}; got {kernel!r}")
    if a_s.ndim != 4 or a_t.ndim != 4 or a_s.shape != b_s.shape or a_t.shape != b_t.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (a_s, b_s, a_t, b_t))
        raise UserError(f"relations are made of two equal tensors (batch, heads, tokens, width) a side; got {shapes}")
    if a_s.shape[:3] != a_t.shape[:3]:
        raise UserError(
            f"student and teacher must have the same samples, heads and tokens; got {tuple(a_s.shape[:3])} and "
            f"{tuple(a_t.shape[:3])}: align heads and tokens first"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (a_s.shape[0], a_s.shape[2])):
        raise UserError(
            f"mask must be booleans ({a_s.shape[0]}, {a_s.shape[2]}), true for real tokens; got "
            f"{tuple(mask.shape)} {mask.dtype}"
        )
