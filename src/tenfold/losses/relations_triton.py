"""The fused form of `tenfold.losses.relation_kl` on CUDA, in Triton.

Forward: one program per map (sample and head) and tile of rows goes over the tiles of columns once, with an online
softmax of both networks, and keeps the row's divergence and its two log-normalizers. Backward: two passes as in
FlashAttention-2, one by rows for ``dA``, one by columns for ``dB``; logits are made again from the inputs.

Written after the formulas of `tenfold.losses.relations`. Its arithmetic is tested in Triton's interpreter on CPU;
on a GPU it is compared with the direct form by tests that run where there is one.
"""

import os
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.losses.relation_logits import differentiable_gradients, row_weights

try:
    import triton
    import triton.language as tl
except ImportError:  # wheels for CPU and macOS come without it
    triton = None

_ROWS = 64


def require_triton() -> None:
    """Raise a `tenfold.errors.UserError` where Triton is not installed."""
    if triton is None:
        raise UserError("the triton form needs the package triton, which comes with torch for CUDA; use 'chunked'")


def triton_kl(a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, scale_s: float, scale_t: float) -> Tensor:
    """The divergence of `tenfold.losses.relation_kl`, without mask and bias; tensors on CUDA.

    Args:
        a_s: ``(batch, heads, N, d_s)`` student's rows.
        b_s: student's columns.
        a_t: ``(batch, heads, N, d_t)`` teacher's rows.
        b_t: teacher's columns.
        scale_s: factor of the student's logits.
        scale_t: factor of the teacher's logits.

    Raises:
        UserError: Triton is missing, or the tensors are not on CUDA, or of float64.
    """
    require_triton()
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not (a_s.is_cuda or interpreted) or a_s.dtype == torch.float64:
        raise UserError(f"the triton form computes on CUDA in float32 or less; got {a_s.device} {a_s.dtype}")
    return _TritonKL.apply(a_s, b_s, a_t, b_t, scale_s, scale_t)


class _TritonKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_s: Tensor, b_s: Tensor, a_t: Tensor, b_t: Tensor, scale_s: float, scale_t: float) -> Tensor:
        a, b, u, w = (x.contiguous() for x in (a_s, b_s, a_t, b_t))
        batch, heads, tokens, _ = a.shape
        maps = batch * heads
        divergence, lse_s, lse_t = torch.empty((3, maps, tokens), dtype=torch.float32, device=a.device)
        _forward[(maps, triton.cdiv(tokens, _ROWS))](
            a, b, u, w, divergence, lse_s, lse_t, scale_s, scale_t, tokens, a.shape[-1], u.shape[-1],
            **_tiles(a, u),
        )  # fmt: skip
        ctx.save_for_backward(a_s, b_s, u, w, lse_s, lse_t)
        ctx.scales = scale_s, scale_t
        return divergence.mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, u, w, lse_s, lse_t = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            rest = (u, w, *ctx.scales, None, None, row_weights(None, a))
            return (*differentiable_gradients(gradient, ctx.needs_input_grad[:2], a, b, *rest), *[None] * 4)
        a, b = a.contiguous(), b.contiguous()
        batch, heads, tokens, _ = a.shape
        maps = batch * heads
        d_a, d_b = torch.empty_like(a), torch.empty_like(b)
        # The incoming gradient stays on its device: reading it here would wait for the whole forward pass.
        weight = (gradient.float() * (ctx.scales[0] / (maps * tokens))).contiguous()
        for kernel, target in ((_backward_rows, d_a), (_backward_columns, d_b)):
            kernel[(maps, triton.cdiv(tokens, _ROWS))](
                a, b, u, w, lse_s, lse_t, weight, target, *ctx.scales, tokens, a.shape[-1], u.shape[-1],
                **_tiles(a, u),
            )  # fmt: skip
        return d_a, d_b, None, None, None, None


def _tiles(a: Tensor, u: Tensor) -> dict[str, Any]:
    return {
        "ROWS": _ROWS,
        # Four float32 tiles of 64 would not fit the shared memory of smaller GPUs.
        "COLUMNS": 32 if a.dtype == torch.float32 else 64,
        "WIDTH_S": max(16, triton.next_power_of_2(a.shape[-1])),
        "WIDTH_T": max(16, triton.next_power_of_2(u.shape[-1])),
        # Tensor cores would round float32 to 10 bits: inputs of float32 are multiplied as such.
        "PRECISION": "ieee" if a.dtype == torch.float32 else "tf32",
    }


if triton is not None:

    @triton.jit
    def _load(base, rows, tokens, width, WIDTH: tl.constexpr):
        columns = tl.arange(0, WIDTH)
        inside = (rows[:, None] < tokens) & (columns[None, :] < width)
        return tl.load(base + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)

    @triton.jit
    def _forward(
        a_ptr, b_ptr, u_ptr, w_ptr, kl_ptr, lse_s_ptr, lse_t_ptr, scale_s, scale_t, tokens, width_s, width_t,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH_S: tl.constexpr, WIDTH_T: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        one = tl.program_id(0).to(tl.int64)
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        a = _load(a_ptr + one * tokens * width_s, rows, tokens, width_s, WIDTH_S)
        u = _load(u_ptr + one * tokens * width_t, rows, tokens, width_t, WIDTH_T)
        top_s = tl.full([ROWS], float("-inf"), tl.float32)
        top_t = tl.full([ROWS], float("-inf"), tl.float32)
        sum_s = tl.zeros([ROWS], tl.float32)
        sum_t = tl.zeros([ROWS], tl.float32)
        crossed = tl.zeros([ROWS], tl.float32)
        for start in range(0, tokens, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            b = _load(b_ptr + one * tokens * width_s, columns, tokens, width_s, WIDTH_S)
            w = _load(w_ptr + one * tokens * width_t, columns, tokens, width_t, WIDTH_T)
            s = tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale_s
            t = tl.dot(u, tl.trans(w), input_precision=PRECISION) * scale_t
            inside = columns[None, :] < tokens
            new_s = tl.maximum(top_s, tl.max(tl.where(inside, s, float("-inf")), 1))
            new_t = tl.maximum(top_t, tl.max(tl.where(inside, t, float("-inf")), 1))
            p_s = tl.where(inside, tl.exp(s - new_s[:, None]), 0.0)
            p_t = tl.where(inside, tl.exp(t - new_t[:, None]), 0.0)
            sum_s = sum_s * tl.exp(top_s - new_s) + tl.sum(p_s, 1)
            sum_t = sum_t * tl.exp(top_t - new_t) + tl.sum(p_t, 1)
            crossed = crossed * tl.exp(top_t - new_t) + tl.sum(p_t * (t - s), 1)
            top_s, top_t = new_s, new_t
        lse_s, lse_t = top_s + tl.log(sum_s), top_t + tl.log(sum_t)
        place, kept = one * tokens + rows, rows < tokens
        tl.store(kl_ptr + place, crossed / sum_t - lse_t + lse_s, mask=kept)
        tl.store(lse_s_ptr + place, lse_s, mask=kept)
        tl.store(lse_t_ptr + place, lse_t, mask=kept)

    @triton.jit
    def _slope(a, b, u, w, lse_s, lse_t, rows, columns, tokens, scale_s, scale_t, PRECISION: tl.constexpr):
        """``P_s - P_t`` of a tile, zero outside of the map."""
        s = tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale_s
        t = tl.dot(u, tl.trans(w), input_precision=PRECISION) * scale_t
        difference = tl.exp(s - lse_s[:, None]) - tl.exp(t - lse_t[:, None])
        return tl.where((rows[:, None] < tokens) & (columns[None, :] < tokens), difference, 0.0)

    @triton.jit
    def _backward_rows(
        a_ptr, b_ptr, u_ptr, w_ptr, lse_s_ptr, lse_t_ptr, weight_ptr, d_ptr, scale_s, scale_t, tokens, width_s,
        width_t, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH_S: tl.constexpr, WIDTH_T: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        one = tl.program_id(0).to(tl.int64)
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        kept = rows < tokens
        a = _load(a_ptr + one * tokens * width_s, rows, tokens, width_s, WIDTH_S)
        u = _load(u_ptr + one * tokens * width_t, rows, tokens, width_t, WIDTH_T)
        lse_s = tl.load(lse_s_ptr + one * tokens + rows, mask=kept, other=0.0)
        lse_t = tl.load(lse_t_ptr + one * tokens + rows, mask=kept, other=0.0)
        d = tl.zeros([ROWS, WIDTH_S], tl.float32)
        for start in range(0, tokens, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            b = _load(b_ptr + one * tokens * width_s, columns, tokens, width_s, WIDTH_S)
            w = _load(w_ptr + one * tokens * width_t, columns, tokens, width_t, WIDTH_T)
            slope = _slope(a, b, u, w, lse_s, lse_t, rows, columns, tokens, scale_s, scale_t, PRECISION)
            d += tl.dot(slope.to(b.dtype), b, input_precision=PRECISION)
        width = tl.arange(0, WIDTH_S)
        place = one * tokens * width_s + rows[:, None] * width_s + width[None, :]
        tl.store(d_ptr + place, d * tl.load(weight_ptr), mask=kept[:, None] & (width[None, :] < width_s))

    @triton.jit
    def _backward_columns(
        a_ptr, b_ptr, u_ptr, w_ptr, lse_s_ptr, lse_t_ptr, weight_ptr, d_ptr, scale_s, scale_t, tokens, width_s,
        width_t, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH_S: tl.constexpr, WIDTH_T: tl.constexpr,
        PRECISION: tl.constexpr,
    ):  # fmt: skip
        one = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        b = _load(b_ptr + one * tokens * width_s, columns, tokens, width_s, WIDTH_S)
        w = _load(w_ptr + one * tokens * width_t, columns, tokens, width_t, WIDTH_T)
        d = tl.zeros([ROWS, WIDTH_S], tl.float32)
        for start in range(0, tokens, COLUMNS):
            rows = start + tl.arange(0, COLUMNS)
            kept = rows < tokens
            a = _load(a_ptr + one * tokens * width_s, rows, tokens, width_s, WIDTH_S)
            u = _load(u_ptr + one * tokens * width_t, rows, tokens, width_t, WIDTH_T)
            lse_s = tl.load(lse_s_ptr + one * tokens + rows, mask=kept, other=0.0)
            lse_t = tl.load(lse_t_ptr + one * tokens + rows, mask=kept, other=0.0)
            slope = _slope(a, b, u, w, lse_s, lse_t, rows, columns, tokens, scale_s, scale_t, PRECISION)
            d += tl.dot(tl.trans(slope).to(a.dtype), a, input_precision=PRECISION)
        width = tl.arange(0, WIDTH_S)
        place = one * tokens * width_s + columns[:, None] * width_s + width[None, :]
        tl.store(d_ptr + place, d * tl.load(weight_ptr), mask=(columns[:, None] < tokens) & (width[None, :] < width_s))
