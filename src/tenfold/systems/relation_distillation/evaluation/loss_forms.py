"""The forms of the relation loss, timed side by side in one process."""

from typing import Any

import torch

from tenfold.cost import measure_latency, measure_peak_memory
from tenfold.losses import relation_kl


def compare_forms(
    *,
    tokens: int,
    batch: int,
    heads: int,
    width_s: int,
    width_t: int,
    forms: tuple[str, ...] | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    repeats: int = 7,
) -> list[dict[str, Any]]:
    """Forward and backward of the Q-K and the V-V divergence in each form, as ratios to the direct one.

    Args:
        tokens: number of tokens N.
        batch: samples.
        heads: heads.
        width_s: the student's head width.
        width_t: the teacher's head width.
        forms: names; all that the device can run where ``None``.
        device: ``cuda`` where there is one.
        dtype: of the inputs; bfloat16 on CUDA, else float32.
        threads: of CPU operations; torch's own choice where ``None``.
        repeats: timed calls.

    Returns:
        One row per form: ``form``, ``milliseconds`` (median), ``speedup`` over the direct form, ``mebibytes`` of extra
        peak memory, ``memory_ratio`` (the direct form's over it), ``loss``.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or (torch.bfloat16 if place == "cuda" else torch.float32)
    names = forms or ("direct", "chunked", *(("triton",) if place == "cuda" else ()))
    generator = torch.Generator().manual_seed(0)

    def random(width: int) -> torch.Tensor:
        return torch.randn(batch, heads, tokens, width, generator=generator).to(place, kind)

    q, k, v = (random(width_s).requires_grad_() for _ in range(3))
    q_t, k_t, v_t = (random(width_t) for _ in range(3))
    losses: dict[str, float] = {}

    def step(name: str) -> None:
        for x in (q, k, v):
            x.grad = None
        loss = relation_kl(q, k, q_t, k_t, kernel=name) + relation_kl(v, v, v_t, v_t, kernel=name)  # type: ignore[arg-type]
        loss.backward()
        losses[name] = float(loss.detach())

    rows: list[dict[str, Any]] = []
    for name in names:
        timed = measure_latency(
            lambda name=name: step(name),  # type: ignore[misc]
            threads=threads or torch.get_num_threads(),
            warmup=2,
            repeats=repeats,
        )
        for x in (q, k, v):
            x.grad = None
        extra = measure_peak_memory(lambda name=name: step(name), device=place)  # type: ignore[misc]
        rows.append({"form": name, "milliseconds": timed.median_ms, "mebibytes": extra / 2**20, "loss": losses[name]})
    for row in rows:
        row["speedup"] = rows[0]["milliseconds"] / row["milliseconds"]
        row["memory_ratio"] = rows[0]["mebibytes"] / row["mebibytes"]
    return rows
