"""Fixed views: a few crops of each image whose teacher's side is computed once (for small sets in memory).

The teacher sees no colour jitter, so that what it makes of a fixed crop never changes: with them, an epoch costs the
student alone. Epoch ``e`` shows view ``e modulo views`` of every image; the student's jitter stays new in each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from tenfold.data import Augmentation, LabelledImages, TensorBatches, normalize
from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.relation_distillation.layers import Tap

_VIEWS, _JITTER = 2, 1  # what a derived seed is for


class FixedViews(TensorBatches):
    """Shuffled batches of fixed crops that resume: ``(images, labels, places)``.

    ``images`` are ``(batch, channels, height, width)``, or with a jitter ``(batch, 2, channels, height, width)``:
    jittered for the student, clean for the teacher. ``places`` index :attr:`crops`.

    Args:
        data: the images.
        batch_size: images of a step, over all processes.
        seed: of order and jitter; the crops do not depend on it.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        views: crops of each image.
        geometry: makes the crops.
        jitter: of the student's view; none where ``None``.

    Attributes:
        crops: ``(views * images, channels, height, width)`` uint8; all images' first views, then all second ones.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        views: int,
        geometry: Sequence[Augmentation],
        jitter: Augmentation | None = None,
    ) -> None:
        super().__init__(data, batch_size, seed=seed, mean=mean, std=std)
        if views < 1:
            raise UserError(f"there must be at least one view of each image; got {views}")
        self.views, self.jitter = views, jitter
        made = []
        for view in range(views):
            for number, chunk in enumerate(data.images.split(1024)):
                generator = Generator().manual_seed(derived_seed(_VIEWS, view, number))
                for change in geometry:
                    chunk = change(chunk, generator)
                made.append(chunk)
        self.crops = torch.cat(made)

    def __iter__(self) -> Iterator[Any]:
        share = self._share()
        first = (self.epoch % self.views) * len(self.data)
        for rows in self._rows():
            generator = Generator().manual_seed(derived_seed(self.seed, _JITTER, self.epoch, self.given))
            clean = self.crops[first + rows]
            seen = clean if self.jitter is None else torch.stack([self.jitter(clean, generator), clean], 1)
            self._advance()
            yield normalize(seen[share], self.mean, self.std), self.data.labels[rows[share]], first + rows[share]


class TeacherCache:
    """What a frozen teacher makes of fixed views, in the memory of its device.

    Args:
        compute: images ``(batch, channels, height, width)`` to the teacher's taps or features, see
            :meth:`~tenfold.systems.relation_distillation.method.RelationDistiller.of_teacher`.
        crops: uint8 views, see :class:`FixedViews`.
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
