"""What a frozen teacher makes of fixed views, kept in memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tenfold.attention.layers import Tap
from tenfold.errors import UserError


class TeacherCache:
    """What a frozen teacher makes of fixed views, in the memory of its device.

    Args:
        compute: images ``(batch, channels, height, width)`` to the teacher's taps or features, see
            `of_teacher`.
        crops: uint8 views, see `FixedViews`.
        prepare: makes the teacher's inputs of uint8 images.
        limit_mb: largest size in MiB.
        batch_size: images at a time.

    Raises:
        UserError: the whole would be larger than ``limit_mb``, or the teacher's layer has biases of its own for every
            image.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], list[Any]],
        crops: Tensor,
        prepare: Callable[[Tensor], Tensor],
        *,
        limit_mb: int,
        batch_size: int = 256,
    ) -> None:
        self._made_of: list[Tap | None] = []
        self._tensors: list[dict[str, Tensor]] = []
        for first in range(0, len(crops), batch_size):
            chunk = crops[first : first + batch_size]
            found = compute(prepare(chunk))
            parts = [_tensors(one, len(chunk)) for one in found]
            if first == 0:
                sizes = sum(t[0].numel() * t.element_size() for part in parts for t in part.values())
                if sizes * len(crops) > limit_mb * 2**20:
                    raise UserError(
                        f"the teacher's side of {len(crops)} views takes {sizes * len(crops) / 2**20:.0f} MiB, more "
                        f"than distil.cache_mb = {limit_mb}: take fewer views, or null for new crops in every epoch"
                    )
                self._made_of = [_without_tensors(one) for one in found]
                self._tensors = [{n: t.new_empty(len(crops), *t.shape[1:]) for n, t in part.items()} for part in parts]
            for kept, part in zip(self._tensors, parts, strict=True):
                for name, tensor in part.items():
                    kept[name][first : first + len(chunk)] = tensor

    def at(self, places: Tensor) -> list[Any]:
        """The teacher's taps or features of some views, by their places."""
        rows = [{name: tensor[places] for name, tensor in one.items()} for one in self._tensors]
        return [
            row["features"] if one is None else replace(one, q=row["q"], k=row["k"], v=row["v"])
            for one, row in zip(self._made_of, rows, strict=True)
        ]


def _tensors(one: Tap | Tensor, batch: int) -> dict[str, Tensor]:
    """The parts with one entry per image."""
    if isinstance(one, Tensor):
        return {"features": one}
    if one.bias is not None and one.bias.shape[0] == batch > 1:
        raise UserError("the teacher's layer has a bias for every image, which is not kept: set distil.views to null")
    return {"q": one.q, "k": one.k, "v": one.v}


def _without_tensors(one: Tap | Tensor) -> Tap | None:
    if isinstance(one, Tensor):
        return None
    nothing = one.q.new_zeros(0)
    return replace(one, q=nothing, k=nothing, v=nothing)
