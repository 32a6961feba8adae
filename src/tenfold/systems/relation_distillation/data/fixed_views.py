"""Fixed views: a few crops of each image whose teacher's side is computed once (for small sets in memory).

The teacher sees no colour jitter, so that what it makes of a fixed crop never changes: with them, an epoch costs the
student alone. Epoch ``e`` shows view ``e modulo views`` of every image; the student's jitter stays new in each.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tenfold.data import Augmentation, LabelledImages, TensorBatches, normalize
from tenfold.errors import UserError
from tenfold.seeds import derived_seed

_VIEWS, _JITTER = 2, 1  # what a derived seed is for


class FixedViews(TensorBatches):
    """Shuffled batches of fixed crops that resume: ``(images, labels, places)``.

    ``images`` are ``(batch, channels, height, width)``, or with a jitter ``(batch, 2, channels, height, width)``:
    jittered for the student, clean for the teacher. ``places`` index `crops`.

    Args:
        data: the images, in memory or as files.
        batch_size: images of a step, over all processes.
        seed: of order and jitter; the crops do not depend on it.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        views: crops of each image.
        geometry: makes the crops: changes of a batch in memory, or of one image file.
        jitter: of the student's view; none where ``None``.

    Attributes:
        crops: ``(views * images, channels, height, width)`` uint8; all images' first views, then all second ones.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        views: int,
        geometry: Sequence[Augmentation] | Callable[[Any], Tensor],
        jitter: Augmentation | None = None,
    ) -> None:
        if views < 1:
            raise UserError(f"there must be at least one view of each image; got {views}")
        self.views, self.jitter = views, jitter
        if isinstance(data, LabelledImages):
            assert not callable(geometry)
            self.crops = _crops_in_memory(data, views, geometry)
        else:
            assert callable(geometry)
            self.crops = _crops_of_files(data, views, geometry)
            data = LabelledImages(self.crops[: len(data)], torch.tensor(data.labels), tuple(data.classes))
        super().__init__(data, batch_size, seed=seed, mean=mean, std=std)

    def __iter__(self) -> Iterator[Any]:
        share = self._share()
        first = (self.epoch % self.views) * len(self.data)
        for rows in self._rows():
            generator = Generator().manual_seed(derived_seed(self.seed, _JITTER, self.epoch, self.given))
            clean = self.crops[first + rows]
            seen = clean if self.jitter is None else torch.stack([self.jitter(clean, generator), clean], 1)
            self._advance()
            yield normalize(seen[share], self.mean, self.std), self.data.labels[rows[share]], first + rows[share]


def _crops_in_memory(data: LabelledImages, views: int, geometry: Sequence[Augmentation]) -> Tensor:
    made = []
    for view in range(views):
        for number, chunk in enumerate(data.images.split(1024)):
            generator = Generator().manual_seed(derived_seed(_VIEWS, view, number))
            for change in geometry:
                chunk = change(chunk, generator)
            made.append(chunk)
    return torch.cat(made)


def _crops_of_files(data: Any, views: int, geometry: Callable[[Any], Tensor]) -> Tensor:
    """Each file is decoded once; its crops draw from the global generator, whose state is put back."""
    made: list[list[Tensor]] = [[] for _ in range(views)]
    with torch.random.fork_rng(devices=[]):
        for number in range(len(data)):
            image, _ = data[number]
            for view in range(views):
                torch.manual_seed(derived_seed(_VIEWS, view, number))
                made[view].append(geometry(image))
    return torch.stack([crop for crops in made for crop in crops])
