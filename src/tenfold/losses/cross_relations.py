"""Divergence of two attention maps between two sequences, such as words over image patches.

    A = softmax over keys of (Q K^T / sqrt(head width)),   masked keys excluded
    loss = weighted mean over queries, mean over heads, of KL(A_teacher || A_student)

The form for one sequence is `tenfold.losses.relations`. Maps of two modalities are small (tens of words times hundreds
of patches), so that the formula itself is what runs.
"""

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.losses.relation_logits import additive_mask, direct_kl, wide


def cross_relation_kl(
    queries_s: Tensor,
    keys_s: Tensor,
    queries_t: Tensor,
    keys_t: Tensor,
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """``KL(teacher || student)`` of the attention of queries over keys, in nats, a mean over heads and queries.

    Logits are kept in float32 whatever the inputs' type is, float64 for float64. A masked key gets a large finite
    negative logit, for minus infinity times the teacher's zero would be no number.

    Args:
        queries_s: ``(batch, heads, n, d_s)`` student's queries.
        keys_s: ``(batch, heads, N, d_s)`` student's keys.
        queries_t: ``(batch, heads, n, d_t)`` teacher's queries. Constant: it gets no gradient.
        keys_t: ``(batch, heads, N, d_t)`` teacher's keys. Constant.
        key_mask: ``(batch, N)`` booleans, true for keys that take part; all do where ``None``.
        query_mask: ``(batch, n)`` booleans, true for queries that count in the mean, which is taken over all samples'
            queries together; all count where ``None``.
        temperature: of both maps.

    Returns:
        Scalar, at least 0 up to rounding.

    Raises:
        UserError: samples, heads or tokens of the two sides differ.

    Example:
        >>> q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8)
        >>> float(cross_relation_kl(q, k, q, k)) < 1e-6
        True
    """
    for student, teacher, what in ((queries_s, queries_t, "queries"), (keys_s, keys_t, "keys")):
        if student.ndim != 4 or student.shape[:3] != teacher.shape[:3]:
            raise UserError(
                f"student and teacher must have the same samples, heads and tokens among their {what}; got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}: bring unequal heads to relation heads first"
            )
    if queries_s.shape[-1] != keys_s.shape[-1] or queries_t.shape[-1] != keys_t.shape[-1]:
        raise UserError("queries and keys of one side must have one head width")
    queries_t, keys_t = queries_t.detach(), keys_t.detach()
    batch, _, rows, _ = queries_s.shape
    counted = torch.ones(batch, rows, dtype=torch.bool, device=queries_s.device) if query_mask is None else query_mask
    weights = counted.to(wide(queries_s[:0]).dtype)
    weights = weights / weights.sum().clamp(min=1)
    added = additive_mask(key_mask, False, None, queries_s)
    scale_s, scale_t = (side.shape[-1] ** -0.5 / temperature for side in (queries_s, queries_t))
    with torch.autocast(queries_s.device.type, enabled=False):
        return direct_kl(queries_s, keys_s, queries_t, keys_t, scale_s, scale_t, added, added, weights)
