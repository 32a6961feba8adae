"""Sets of frames: what every reader gives and batches are made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold.data.batches import ResumableBatches
from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.full_skip_depth.sets.depth_files import read_depth
from tenfold.systems.full_skip_depth.sets.pairs import Pair
from tenfold.systems.full_skip_depth.training.augmentation import Augmentation, cut_border

Frame = tuple[Tensor, Tensor, float]
"""Image ``(3, height, width)`` uint8, depth ``(height, width)`` float32 metres (0: none), focal length in pixels."""


class Frames(Protocol):
    """A set of frames: ``len``, ``frames[i]`` and their names."""

    @property
    def names(self) -> Sequence[str]:
        """Of the frames, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...


@dataclass(frozen=True)
class FrameArrays:
    """Frames in memory.

    Attributes:
        images: ``(n, 3, height, width)`` uint8.
        depths: ``(n, height, width)`` float32 metres; 0, NaN and infinite: no value.
        focal: focal length in pixels; NaN where unknown.
        names: of the frames.

    Raises:
        UserError: shapes or types are not these, or no pixel has a depth.
    """

    images: Tensor
    depths: Tensor
    focal: float = float("nan")
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise UserError(f"images must be uint8 (n, 3, height, width); got {tuple(self.images.shape)}")
        if self.depths.shape != (len(self.images), *self.images.shape[2:]) or self.depths.dtype != torch.float32:
            raise UserError(f"depths must be float32 (n, height, width) of the images; got {tuple(self.depths.shape)}")
        usable = torch.where(self.depths.isfinite() & (self.depths > 0), self.depths, 0)
        if not bool(usable.any()):
            raise UserError("no pixel of these frames has a depth above 0")
        object.__setattr__(self, "depths", usable)
        object.__setattr__(self, "names", tuple(self.names) or tuple(map(str, range(len(self.images)))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Frame:
        return self.images[index], self.depths[index], self.focal

    def subset(self, rows: slice | Sequence[int]) -> "FrameArrays":
        """Some of the frames."""
        names = self.names[rows] if isinstance(rows, slice) else [self.names[n] for n in rows]
        return FrameArrays(self.images[rows], self.depths[rows], self.focal, names)


class FrameFiles:
    """Frames of files, read when they are needed.

    Args:
        pairs: with a depth map each, or none where only images are wanted.
        depth_scale: values per metre, see ``read_depth``.
        size: ``(height, width)`` to which images are resized (antialiased) and depth maps by their nearest pixels;
            their own where ``None``. Images and depth maps may then differ in size, not in shape.
        border: ``none``, ``kitti`` or ``nyu``: what is cut off every frame, see the published recipes.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        depth_scale: float | None = None,
        size: tuple[int, int] | None = None,
        border: str = "none",
    ) -> None:
        self.pairs, self.depth_scale, self.size, self.border = list(pairs), depth_scale, size, border
        self.names = [pair.name for pair in pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Frame:
        pair = self.pairs[index]
        image = read_photo(pair.image)
        if pair.depth is None:
            depth = torch.zeros(image.shape[1:])
        else:
            depth = torch.from_numpy(read_depth(pair.depth, self.depth_scale))
        focal = pair.focal
        require_one_size(image, depth, pair.name, resized=self.size is not None)
        if self.size is not None:
            focal = focal * self.size[1] / image.shape[2]
            image, depth = resize_frame(image, depth, self.size)
        return cut_border(image, self.border), cut_border(depth, self.border), focal


def require_one_size(image: Tensor, depth: Tensor, name: str, *, resized: bool = False) -> None:
    """Refuse an image and a depth map that do not belong together.

    Raises:
        UserError: their sizes differ, or, where both are resized, their shapes do by more than a pixel in fifty.
    """
    (height, width), (h, w) = image.shape[1:], depth.shape
    if (height, width) == (h, w) or (resized and abs(height * w - h * width) <= 0.02 * height * w):
        return
    more = "" if resized else "; bring both to one size with --data.image_size '[HEIGHT, WIDTH]'"
    raise UserError(f"{name}: the image has {height} x {width} pixels and its depth map {h} x {w}{more}")


def resize_frame(image: Tensor, depth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image resized with antialiasing, depth by the nearest pixel, which mixes no two depths."""
    x = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    d = F.interpolate(depth[None, None], size=size, mode="nearest-exact")[0, 0]
    return x.round().clamp(0, 255).to(torch.uint8), d


def read_photo(path: str | Path) -> Tensor:
    """A photo as it is meant to be seen (EXIF orientation), in colour: ``(3, height, width)`` uint8.

    Raises:
        UserError: the file is missing or damaged, or of a kind whose values are not 8-bit colours.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path} is an image of mode {image.mode}, not an 8-bit photo: is it a depth map?")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: there is no such file") from error
    except Exception as error:  # a damaged file can end the decoder anywhere
        raise UserError(f"{path} is damaged or no image; copy it again or remove it") from error


class FrameBatches(ResumableBatches):
    """Shuffled training batches: images float32 in [0, 1], depths, focal lengths; resumable in mid-epoch.

    Args:
        frames: of one size after augmentation.
        batch_size: frames of a step, over all processes together.
        seed: of order and augmentation.
        augmentation: see ``Augmentation``.
        workers: processes that read.
    """

    def __init__(
        self, frames: Frames, batch_size: int, *, seed: int, augmentation: Augmentation, workers: int = 0
    ) -> None:
        super().__init__(len(frames), batch_size, seed)
        self.frames, self.augmentation, self.workers = frames, augmentation, workers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        share = self._share()
        loader: DataLoader[Any] = DataLoader(
            _Augmented(self.frames, self.augmentation, derived_seed(self.seed, 1, self.epoch)),
            batch_sampler=[rows[share].tolist() for rows in self._rows()],
            num_workers=self.workers,
            collate_fn=_stack,
            generator=torch.Generator(),  # else starting the workers draws from the global one
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            self._advance()
            yield batch


class _Augmented(Dataset):
    """Frames whose random changes depend on the seed and the frame, not on the worker that makes them."""

    def __init__(self, frames: Frames, augmentation: Augmentation, seed: int) -> None:
        self.frames, self.augmentation, self.seed = frames, augmentation, seed

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Any:
        try:
            image, depth, focal = self.frames[index]
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derived_seed(self.seed, index))
                return *self.augmentation(image, depth), focal
        except UserError as error:  # raised in a worker, torch would wrap its line in a traceback
            return error


def _stack(samples: list[Any]) -> Any:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    sizes = {tuple(depth.shape) for _, depth, _ in samples}
    if len(sizes) > 1:
        return UserError(
            f"frames of {len(sizes)} sizes do not make a batch: set a training crop (--data.crop '[HEIGHT, WIDTH]') or "
            "one size for all (--data.image_size)"
        )
    images, depths, focals = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(depths), torch.tensor(focals)


def evaluation_batches(frames: Frames, batch_size: int = 16) -> Iterator[tuple[Tensor, Tensor, Tensor, list[str]]]:
    """Frames in order, those of equal size together: images in [0, 1], depths, focal lengths, names."""
    waiting: list[tuple[Tensor, Tensor, float, str]] = []
    for index in range(len(frames)):
        image, depth, focal = frames[index]
        if waiting and (len(waiting) == batch_size or waiting[0][1].shape != depth.shape):
            yield _evaluation_batch(waiting)
            waiting = []
        waiting.append((image, depth, focal, frames.names[index]))
    if waiting:
        yield _evaluation_batch(waiting)


def _evaluation_batch(
    waiting: list[tuple[Tensor, Tensor, float, str]],
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    images, depths, focals, names = zip(*waiting, strict=True)
    return torch.stack(images).float() / 255, torch.stack(depths), torch.tensor(focals), list(names)
