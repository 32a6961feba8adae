"""NYU Depth v2 in its four forms: synchronised folders, official splits, the labelled .mat, and HDF5 per frame."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tenfold.errors import UserError, require
from tenfold.systems.full_skip_depth.sets.frames import Frame, FrameFiles, Frames
from tenfold.systems.full_skip_depth.sets.pairs import Pair, pairs_of_list, read_lines
from tenfold.systems.full_skip_depth.training.augmentation import cut_border

NyuLayout = Literal["auto", "folders", "mat", "h5"]
FOCAL = 518.8579
LABELLED = "nyu_depth_v2_labeled.mat"


def nyu_frames(
    root: str | Path, *, part: str, split: str | Path | None = None, layout: NyuLayout = "auto", border: str = "none"
) -> Frames:
    """Frames of NYU Depth v2.

    Args:
        root: folder of one of the four forms, or the labelled file itself.
        part: ``train`` or ``test``.
        split: list of ``<image> <depth> <focal>``; needed by folders; of the labelled file the test list's numbers are
            the test frames and all others train. Without one, HDF5 folders are taken whole.
        layout: ``folders`` (``<scene>/rgb_00045.jpg`` and ``sync_depth_00045.png``, also below ``test/``), ``mat``,
            ``h5`` (``train/<scene>/00001.h5``, ``val/official/00001.h5``), or found out.
        border: see ``FrameFiles``.

    Raises:
        UserError: the root holds none of these.
    """
    root = Path(root)
    mat = root if root.suffix == ".mat" else root / LABELLED
    h5_folder = root / ("train" if part == "train" else "val")
    if layout == "auto":
        if mat.is_file():
            layout = "mat"
        elif next(h5_folder.rglob("*.h5"), None) is not None:
            layout = "h5"
        else:
            layout = "folders"
    if layout == "mat":
        return _labelled(mat, part, split, border)
    if layout == "h5":
        files = sorted(h5_folder.rglob("*.h5"))
        if not files:
            raise UserError(f"{h5_folder} holds no .h5 frames")
        return Hdf5Frames(files, border=border)
    if split is None:
        pairs = _synchronised(root / part if (root / part).is_dir() else root)
    else:
        roots = [path for path in (root, root / "test", root / "train", root / "official_splits") if path.is_dir()]
        pairs = [pair for pair in pairs_of_list(split, roots, roots) if pair.depth is not None]
    return FrameFiles(pairs, depth_scale=1000, border=border)


class LabelledFrames:
    """Frames of the labelled file (HDF5, v7.3): ``images``, ``rawDepths``, both stored with the width first.

    Args:
        path: the file.
        rows: 0-based numbers of frames.
        raw: measured depths (``rawDepths``), not the filled ones (``depths``).
        border: see ``FrameFiles``.
    """

    def __init__(self, path: str | Path, rows: Sequence[int], *, raw: bool = True, border: str = "none") -> None:
        self.path, self.rows, self.raw, self.border = Path(path), list(rows), raw, border
        self.names = [f"rgb_{row:05d}" for row in self.rows]
        self._file: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Frame:
        if self._file is None:  # opened by every worker for itself
            self._file = _open_hdf5(self.path)
        row = self.rows[index]
        # As stored: (3, 640, 480) and (640, 480); the last two axes are swapped.
        image = torch.from_numpy(np.ascontiguousarray(self._file["images"][row].transpose(0, 2, 1)))
        depth = np.ascontiguousarray(self._file["rawDepths" if self.raw else "depths"][row].T, dtype=np.float32)
        return cut_border(image, self.border), cut_border(_usable(depth), self.border), FOCAL

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


class Hdf5Frames:
    """One HDF5 file a frame: ``rgb`` (3, height, width) uint8 and ``depth`` (height, width) metres.

    The form is that of the fast-depth distribution, as far as it is known to us.
    """

    def __init__(self, files: Sequence[Path], *, border: str = "none") -> None:
        self.files, self.border = list(files), border
        self.names = [f"{path.parent.name}/{path.stem}" for path in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        with _open_hdf5(self.files[index]) as file:
            try:
                image, depth = np.asarray(file["rgb"]), np.asarray(file["depth"], dtype=np.float32)
            except (KeyError, OSError) as error:
                raise UserError(f"{self.files[index]} holds no rgb and depth") from error
        if image.ndim != 3 or image.shape[0] != 3 or image.shape[1:] != depth.shape:
            raise UserError(f"{self.files[index]}: rgb is {image.shape} and depth {depth.shape}")
        return (
            cut_border(torch.from_numpy(image), self.border),
            cut_border(_usable(depth), self.border),
            FOCAL,
        )


def _labelled(mat: Path, part: str, split: str | Path | None, border: str) -> LabelledFrames:
    with _open_hdf5(mat) as file:
        missing = [name for name in ("images", "rawDepths") if name not in file]
        if missing:
            raise UserError(f"{mat} holds no {missing[0]}")
        shape = file["images"].shape
        if len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{mat}: images have shape {shape}, not (frames, 3, width, height)")
        count = shape[0]
    if split is None:
        raise UserError("the labelled file needs the test list, whose numbers are its test frames (--data.test_list)")
    numbers = {_number_of(line, split) for line in read_lines(split)}
    if numbers and max(numbers) >= count:
        raise UserError(f"{split} names frame {max(numbers)}; {mat} holds {count}")
    rows = sorted(numbers) if part == "test" else [row for row in range(count) if row not in numbers]
    return LabelledFrames(mat, rows, border=border)


def _synchronised(root: Path) -> list[Pair]:
    pairs = []
    for image in sorted(root.rglob("rgb_*.jpg")):
        depth = image.with_name(image.name.replace("rgb_", "sync_depth_")).with_suffix(".png")
        if not depth.is_file():
            raise UserError(f"{image} has no {depth.name} beside it")
        pairs.append(Pair(image.relative_to(root).as_posix(), image, depth, FOCAL))
    if not pairs:
        raise UserError(f"{root} holds NYU Depth v2 in none of its forms: rgb_*.jpg, {LABELLED}, or .h5 frames")
    return pairs


def _number_of(line: str, source: str | Path) -> int:
    found = re.search(r"rgb_(\d+)", line)
    if found is None:
        raise UserError(f"{source}: the line {line[:60]!r} names no rgb_<number>")
    return int(found[1])


def _usable(depth: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32))


def _open_hdf5(path: Path) -> Any:
    h5py = require("h5py", "depth")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is missing, damaged or no HDF5 file: {' '.join(str(error).split())[:100]}") from error
