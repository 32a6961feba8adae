"""Random draws that depend on the sample, the pass and the seed, and on nothing else.

Whatever drops units in PyTorch draws its mask by one of a few operations; those are replaced by a counter-based
generator: a hash of (seed, pass, sample, number of the draw within the pass, position). A sample then gets the same
masks in any batch, in any order, on any number of processes. It is several times slower than PyTorch's generator.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.errors import UserError

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # of splitmix64, as int64


def _wrapped(number: int) -> int:
    """The number modulo 2^64, as an int64."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, whose products wrap and whose shifts are made logical."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _FIRST
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


class SampleMasks(TorchDispatchMode):
    """While active, random masks are drawn per sample.

    Args:
        seed: of all draws.
        ids: ``(batch,)`` int64, one number per sample, the same whenever the sample comes.
        first_pass: number of the pass.
        passes: how many passes the batch holds, one after the other: rows ``0 .. batch-1`` are of ``first_pass``.

    Raises:
        UserError: a mask's first axis is not the batch (or the batch times a number of heads).
    """

    def __init__(self, seed: int, ids: Tensor, first_pass: int = 0, passes: int = 1) -> None:
        super().__init__()
        numbers = torch.arange(first_pass, first_pass + passes, device=ids.device).repeat_interleave(len(ids))
        self._rows = _mix(_mix(ids.long().repeat(passes) + _wrapped(seed * _GOLDEN)) + numbers * _GOLDEN)
        self._draw = 0

    def uniform(self, shape: torch.Size | list[int], device: torch.device) -> Tensor:
        """The next draw: ``shape`` float32 in [0, 1), rows by sample."""
        rows = len(self._rows)
        if not len(shape) or shape[0] % rows:
            raise UserError(
                f"masks per sample need the batch of {rows} as first axis of what is dropped; got {tuple(shape)}"
            )
        self._draw += 1
        keys = _mix(self._rows.to(device) + _wrapped(self._draw * _GOLDEN))
        positions = torch.arange(torch.Size(shape).numel() // rows, device=device)
        bits = _mix(keys[:, None] + positions[None] * _GOLDEN)
        return (((bits >> 40) & 0xFFFFFF).float() * 2.0**-24).view(list(shape))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = _REPLACED.get(func)
        if replacement is not None:
            return replacement(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _bernoulli_(masks: SampleMasks, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return x.copy_(masks.uniform(x.shape, x.device) < p)


def _native_dropout(masks: SampleMasks, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    kept = masks.uniform(x.shape, x.device) >= p
    return x * kept * (1 / (1 - p)), kept


def _dropout(masks: SampleMasks, x: Tensor, p: float, train: bool) -> Tensor:
    return _native_dropout(masks, x, p, train)[0] if train and p > 0 else x


def _rand(masks: SampleMasks, size: list[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return masks.uniform(size, torch.device(device or "cpu")).to(dtype or torch.get_default_dtype())


_REPLACED: dict[Any, Callable] = {
    torch.ops.aten.bernoulli_.float: _bernoulli_,
    torch.ops.aten.native_dropout.default: _native_dropout,
    torch.ops.aten.dropout.default: _dropout,
    torch.ops.aten.rand.default: _rand,
}
