"""Batches that resume in mid-epoch and are the same for any number of processes and workers.

The order of an epoch depends on the seed and the epoch alone; what is random about a batch, on the seed, the epoch and
the batch. A batch is the *global* one: rank r of w gets its rows r, r+w, r+2w, ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from tenfold.data.augment import Augmentation
from tenfold.data.folder import ImageFiles
from tenfold.data.images import LabelledImages
from tenfold.data.preprocessing import normalize
from tenfold.data.shards import ShardImages
from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.training.parallel import rank, world_size

_ORDER, _CHANGES = 0, 1  # what a derived seed is for


class ResumableBatches:
    """Position, order and ranks; subclasses turn rows into tensors."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {batch_size}")
        self.samples = samples
        self.batch_size = min(batch_size, samples)
        self.seed = seed
        self.epoch = 0
        self.given = 0

    def __len__(self) -> int:
        """Batches of an epoch; the rest that fills no batch is left out, another one in every epoch."""
        return self.samples // self.batch_size

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, and batches of it that were given."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position; the next iterator starts there."""
        self.epoch, self.given = state["epoch"], state["given"]

    def _rows(self) -> list[Tensor]:
        """Row numbers of the global batches that are still to be given in this epoch."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, _ORDER, self.epoch))
        order = torch.randperm(self.samples, generator=generator)
        return list(order[: len(self) * self.batch_size].split(self.batch_size))[self.given :]

    def _advance(self) -> None:
        # Before the batch is handed out: a consumer that knows the length never asks once more.
        self.given += 1
        if self.given == len(self):
            self.epoch, self.given = self.epoch + 1, 0

    def _share(self) -> slice:
        ranks = world_size()
        if self.batch_size % ranks:
            raise UserError(f"batch_size {self.batch_size} is not a multiple of the {ranks} processes that share it")
        return slice(rank() if ranks > 1 else 0, None, ranks)


class TensorBatches(ResumableBatches):
    """Shuffled training batches of images in memory: ``(images, labels)``, images normalized float32.

    Args:
        data: the images.
        batch_size: images of a step, over all processes together; at most all images.
        seed: of order and augmentation.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        augmentations: applied in turn to the uint8 batch.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        *,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        super().__init__(len(data), batch_size, seed)
        self.data = data
        self.mean, self.std = mean, std
        self.augmentations = list(augmentations)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        share = self._share()
        for rows in self._rows():
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _CHANGES, self.epoch, self.given))
            images = self.data.images[rows]
            for augmentation in self.augmentations:  # drawn for all ranks' rows, so that ranks do not matter
                images = augmentation(images, generator)
            self._advance()
            yield normalize(images[share], self.mean, self.std), self.data.labels[rows[share]]


class RowBatches(ResumableBatches):
    """Shuffled training batches of rows of a table: ``(columns of the rows, targets)``.

    Args:
        columns: tensors ``(n, ...)`` by the name of the network's argument.
        targets: ``(n, ...)`` what is to be predicted.
        batch_size: rows of a step, over all processes together; at most all rows.
        seed: of the order.
    """

    def __init__(self, columns: Mapping[str, Tensor], targets: Tensor, batch_size: int, *, seed: int) -> None:
        super().__init__(len(targets), batch_size, seed)
        self.columns, self.targets = dict(columns), targets

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        share = self._share()
        for rows in self._rows():
            own = rows[share]
            self._advance()
            yield {name: column[own] for name, column in self.columns.items()}, self.targets[own]


class FileBatches(ResumableBatches):
    """Shuffled training batches of image files, decoded by workers: as ``TensorBatches``.

    Args:
        data: the files.
        batch_size: see ``TensorBatches``.
        seed: see ``TensorBatches``.
        transform: PIL image to uint8 tensor ``(3, height, width)``, the one size for all; draws from torch's generator.
        mean: see ``TensorBatches``.
        std: see ``TensorBatches``.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        data: ImageFiles | ShardImages,
        batch_size: int,
        *,
        seed: int,
        transform: Callable[[Any], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        workers: int = 0,
    ) -> None:
        super().__init__(len(data), batch_size, seed)
        self.data = data
        self.transform = transform
        self.mean, self.std = mean, std
        self.workers = workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        share = self._share()
        seeded = _SeededImages(self.data, self.transform, derived_seed(self.seed, _CHANGES, self.epoch))
        loader = DataLoader(
            seeded,
            batch_sampler=[rows[share].tolist() for rows in self._rows()],
            num_workers=self.workers,
            collate_fn=_batch_or_error,
            generator=torch.Generator(),  # else starting the workers draws from the global one
        )
        for images, labels in _loaded(loader):
            self._advance()
            yield normalize(images, self.mean, self.std), labels


class _SeededImages(Dataset):
    """Images whose random changes depend on the seed and the image, not on the worker that makes them."""

    def __init__(self, data: ImageFiles | ShardImages, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | UserError:
        try:
            image, label = self.data[index]
        except UserError as error:  # raised in a worker, torch would wrap its line in a traceback, and wait for seconds
            return error
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would also seed the accelerators, whose state is not put back.
            torch.default_generator.manual_seed(derived_seed(self.seed, index))
            return self.transform(image), label


def _loaded(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, or the error of an image that cannot be read."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _batch_or_error(samples: list[tuple[Tensor, int] | UserError]) -> Any:
    """Collate samples; the first error among them instead where there is one."""
    return next((sample for sample in samples if isinstance(sample, UserError)), None) or default_collate(samples)


def evaluation_batches(
    data: LabelledImages | ImageFiles,
    batch_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    transform: Callable[[Any], Tensor] | None = None,
    augmentations: Sequence[Augmentation] = (),
    workers: int = 0,
    whole: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches in order, nothing left out, this rank's share of them: ``(images, labels, indices)``.

    Args:
        data: images in memory, or files.
        batch_size: images at a time, on this rank.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel.
        transform: for files, PIL image to uint8 tensor; if it is random, it draws the same for an image every time.
        augmentations: for images in memory; as a rule none.
        workers: for files, processes that decode.
        whole: give every rank all images instead of its share.
    """
    indices = torch.arange(len(data))
    if not whole:
        indices = indices[rank() if world_size() > 1 else 0 :: world_size()]
    chunks = indices.split(batch_size)
    if isinstance(data, LabelledImages):
        for number, rows in enumerate(chunks):
            images = data.images[rows]
            for augmentation in augmentations:
                images = augmentation(images, torch.Generator().manual_seed(derived_seed(0, _CHANGES, number)))
            yield normalize(images, mean, std), data.labels[rows], rows
        return
    if transform is None:
        raise ValueError("image files need a transform that brings them to one size")
    if len(indices) == 0:  # fewer images than ranks
        return
    loader = DataLoader(
        _SeededImages(data, transform, derived_seed(0, _CHANGES)),
        batch_sampler=[rows.tolist() for rows in chunks],
        num_workers=workers,
        collate_fn=_batch_or_error,
        generator=torch.Generator(),  # as in training: the global one stays as it is
    )
    for rows, (images, labels) in zip(chunks, _loaded(loader), strict=True):
        yield normalize(images, mean, std), labels, rows
