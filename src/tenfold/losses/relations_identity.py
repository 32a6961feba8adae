"""The attention-identity form of `tenfold.losses.relation_kl`: the divergence out of stock attention kernels.

With ``P = softmax(T)`` the teacher's relation, row by row::

    KL = sum_j P_j (T_j - S_j) - lse(T) + lse(S)
       = c_t u (P W) - c_s a (P B) - lse(T) + lse(S)

``P [W | B]`` is ordinary attention with the teacher's queries and keys and with both networks' columns as values. The
gradients ``c_s (P_s - P_t) B`` and ``c_s (P_s - P_t)^T A`` are attentions, too: the first with values ``B``, the second
is what the backward pass of an attention gives to its values when ``A`` comes in.

The kernels must return their log-normalizers: the flash kernel on CPU, the memory-efficient one on CUDA. They want one
width for queries, keys and values: zero columns, which leave dot products as they are, make up the difference.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import UserError
from tenfold.losses.relations import wide

_aten = torch.ops.aten


class IdentityKL(torch.autograd.Function):
    """``(a_s, b_s, a_t, b_t, scale_s, scale_t, added_s, added_t, weights)`` to the scalar divergence."""

    @staticmethod
    def forward(
        ctx: Any,
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
        """Loss, and the gradients that the backward pass will scale."""
        # In float32 at least: bfloat16 attention would lose the small differences that the divergence is made of.
        a, b, u, w = (wide(x) for x in (a_s, b_s, a_t, b_t))
        width_s, width_t = a.shape[-1], u.shape[-1]
        batch, heads, tokens, _ = a.shape
        added_s, added_t = (None if x is None else x.expand(batch, heads, tokens, tokens) for x in (added_s, added_t))
        of_teacher = _Attention(u, w, torch.cat([w, b], -1), scale_t, added_t)
        of_student = _Attention(a, b, b, scale_s, added_s)
        mean_w, mean_b = of_teacher.output.split([width_t, width_s], -1)
        rows = (
            scale_t * torch.linalg.vecdot(u, mean_w)
            - scale_s * torch.linalg.vecdot(a, mean_b)
            - of_teacher.log_normalizer
            + of_student.log_normalizer
        )
        if added_s is not None or added_t is not None:
            rows = rows + _of_biases(of_teacher, u, w, scale_t, added_s, added_t)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            weight = weights[:, None, :, None] * (scale_s / heads)
            weighted = a * weight
            d_a = (of_student.output - mean_b) * weight
            d_b = of_student.to_values(weighted)
            padded = F.pad(weighted, (width_t, 0))
            d_b = d_b - of_teacher.to_values(padded)[..., width_t:]
            ctx.save_for_backward(d_a.to(a_s.dtype), d_b.to(b_s.dtype))
        return (rows.mean(1) * weights).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the forward pass times the incoming one."""
        d_a, d_b = ctx.saved_tensors
        return (gradient * d_a).to(d_a.dtype), (gradient * d_b).to(d_b.dtype), *[None] * 7


def _of_biases(
    attention: "_Attention", u: Tensor, w: Tensor, scale: float, added_s: Tensor | None, added_t: Tensor | None
) -> Tensor | float:
    """``sum_j P_ij (bias_t - bias_s)_ij``: zero for equal addends, else a map, which biases are anyway."""
    if added_s is added_t or (added_s is not None and added_t is not None and torch.equal(added_s, added_t)):
        return 0.0
    logits = torch.matmul(u, w.transpose(-1, -2)) * scale + (0 if added_t is None else added_t)
    difference = (0 if added_t is None else added_t) - (0 if added_s is None else added_s)
    return torch.linalg.vecdot((logits - attention.log_normalizer[..., None]).exp(), difference.expand_as(logits))  # type: ignore[union-attr]


class _Attention:
    """One attention with its log-normalizers, and the gradient that it gives to its values.

    Attributes:
        output: ``(batch, heads, N, width of the values)``.
        log_normalizer: ``(batch, heads, N)``.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, added: Tensor | None) -> None:
        self.width = v.shape[-1]
        width = -(-max(q.shape[-1], self.width) // 8) * 8
        self._q, self._k, self._v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        self._scale, self._added = scale, added
        if q.device.type == "cpu":
            self._out, self._lse = _aten._scaled_dot_product_flash_attention_for_cpu(
                self._q, self._k, self._v, 0.0, False, attn_mask=added, scale=scale
            )
        elif q.is_cuda and q.dtype != torch.float64:
            self._out, self._lse, self._seed, self._offset = _aten._scaled_dot_product_efficient_attention(
                self._q, self._k, self._v, added, True, 0.0, False, scale=scale
            )
        else:
            raise UserError(f"no attention kernel on {q.device} returns log-normalizers of {q.dtype}; use 'chunked'")
        self.output = self._out[..., : self.width]
        self.log_normalizer = self._lse[..., : q.shape[-2]].to(q.dtype)  # the CUDA kernel pads its rows

    def to_values(self, gradient: Tensor) -> Tensor:
        """``P^T gradient``, ``(batch, heads, N, width of the values)``."""
        padded = F.pad(gradient, (0, self._v.shape[-1] - gradient.shape[-1]))
        if padded.device.type == "cpu":
            found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                padded, self._q, self._k, self._v, self._out, self._lse, 0.0, False,
                attn_mask=self._added, scale=self._scale,
            )  # fmt: skip
        else:
            found = _aten._scaled_dot_product_efficient_attention_backward(
                padded, self._q, self._k, self._v, self._added, self._out, self._lse, self._seed, self._offset, 0.0,
                [False, False, True, False], False, scale=self._scale,
            )  # fmt: skip
        return found[2][..., : gradient.shape[-1]]
