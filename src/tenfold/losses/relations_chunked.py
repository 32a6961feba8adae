"""The chunked form of `tenfold.losses.relation_kl`: a block of heads and rows at a time.

A block's logits give its divergence and, since the loss is a scalar whose row weights are known, its gradients at
once:

    G = weight c_s (P_s - P_t)        dA = G B        dB = G^T A

so that nothing is computed twice and only ``dA`` and ``dB``, of the size of the inputs, wait for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from tenfold.losses.relation_logits import differentiable_gradients, wide

_CPU_BLOCK, _GPU_BLOCK = 2**19, 2**26  # elements of a block's map: about a core's cache; 256 MB in float32


class ChunkedKL(torch.autograd.Function):
    """``(a_s, b_s, a_t, b_t, scale_s, scale_t, added_s, added_t, weights, chunk)`` to the scalar divergence."""

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
        chunk: int | None,
    ) -> Tensor:
        """Loss, and the gradients that the backward pass will scale."""
        batch, heads, tokens, _ = a_s.shape
        maps = batch * heads
        rows, together = _block_size(tokens, maps, chunk, a_s.is_cuda)
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        flat = [x.reshape(maps, tokens, x.shape[-1]) for x in (a_s, b_s, a_t, b_t)]
        row_weight = weights.repeat_interleave(heads, 0) / heads
        total = weights.new_zeros(())
        gradients = [torch.empty(x.shape, dtype=weights.dtype, device=x.device) for x in flat[:2]] if learns else []
        for first in range(0, maps, together):
            block = slice(first, min(first + together, maps))
            a, b, u, w = (wide(x[block]) for x in flat)
            for top in range(0, tokens, rows):
                row = slice(top, min(top + rows, tokens))
                weight = row_weight[block, row, None]
                s = torch.bmm(a[:, row], b.transpose(1, 2)).mul_(scale_s)
                t = torch.bmm(u[:, row], w.transpose(1, 2)).mul_(scale_t)
                _add(s, added_s, block, row, batch, heads)
                _add(t, added_t, block, row, batch, heads)
                log_p, log_t = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
                del s, t
                p_t = log_t.exp()
                # The weighted sum over the block, without a further map of its size.
                total += torch.linalg.vecdot(log_t.sub_(log_p), p_t)[..., None].mul_(weight).sum()
                if not learns:
                    continue
                del log_t
                slope = log_p.exp_().sub_(p_t).mul_(weight * scale_s)
                gradients[0][block, row] = torch.bmm(slope, b)
                if rows == tokens:
                    gradients[1][block] = torch.bmm(slope.transpose(1, 2), a)
                elif top == 0:
                    gradients[1][block] = torch.bmm(slope.transpose(1, 2), a[:, row])
                else:
                    gradients[1][block].baddbmm_(slope.transpose(1, 2), a[:, row])
        if learns:
            # In float32: a mean's gradients are smaller than float16 holds before a gradient scaler's factor has come.
            ctx.save_for_backward(
                *(g.view(a_s.shape) for g in gradients), a_s, b_s, a_t, b_t, added_s, added_t, weights
            )
            ctx.scales = scale_s, scale_t
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the forward pass times the incoming one."""
        d_a, d_b, a_s, b_s, a_t, b_t, added_s, added_t, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            rest = (a_t, b_t, *ctx.scales, added_s, added_t, weights)
            return (*differentiable_gradients(gradient, needed, a_s, b_s, *rest), *[None] * 8)
        return (
            *((gradient * d).to(a_s.dtype) if need else None for d, need in zip((d_a, d_b), needed, strict=True)),
            *[None] * 8,
        )


def _block_size(tokens: int, maps: int, chunk: int | None, on_gpu: bool) -> tuple[int, int]:
    """Rows of a block and maps (samples times heads) that go together."""
    elements = _GPU_BLOCK if on_gpu else _CPU_BLOCK
    rows = min(tokens, max(1, elements // tokens)) if chunk is None else max(1, min(chunk, tokens))
    return rows, max(1, min(maps, elements // (rows * tokens)))


def _add(logits: Tensor, added: Tensor | None, block: slice, row: slice, batch: int, heads: int) -> None:
    """Add the block's part of an addend that broadcasts to ``(batch, heads, N, N)``."""
    if added is None:
        return
    tokens = logits.shape[-1]
    numbers = torch.arange(block.start, block.stop, device=logits.device)
    whole = added.expand(batch, heads, tokens, tokens)
    logits += whole[numbers // heads, numbers % heads, row]
