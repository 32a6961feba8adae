"""Training, validation and test frames by name."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from tenfold.data import find_data
from tenfold.errors import TenfoldWarning, UserError
from tenfold.systems.full_skip_depth.sets.doctor import require_usable, unit_problem
from tenfold.systems.full_skip_depth.sets.driving import drive_frames
from tenfold.systems.full_skip_depth.sets.frames import FrameArrays, FrameFiles, Frames
from tenfold.systems.full_skip_depth.sets.kitti import kitti_pairs
from tenfold.systems.full_skip_depth.sets.nyu import nyu_frames
from tenfold.systems.full_skip_depth.sets.pairs import Pair, pairs_by_stem, pairs_of_csv, require_partners
from tenfold.systems.full_skip_depth.sets.rooms import render_rooms

SetName = Literal["rooms", "rooms-easy", "drive", "pairs", "csv", "kitti", "nyu"]
SETS: tuple[SetName, ...] = ("rooms", "rooms-easy", "drive", "pairs", "csv", "kitti", "nyu")
_LOOKED_AT = 20


@dataclass(frozen=True)
class DepthSplits:
    """Frames for training, validation and test.

    Attributes:
        name: of the data.
        train: what is learnt from.
        validation: what epochs are chosen by.
        test: what is measured.
        dense: whether every pixel has a depth, as edges need.
        notes: what a reader must know.
    """

    name: str
    train: Frames
    validation: Frames
    test: Frames
    dense: bool = False
    notes: list[str] = field(default_factory=list)


def load_splits(
    name: SetName,
    root: str | None = None,
    *,
    images: int = 600,
    image_size: Sequence[int] | None = None,
    depth_scale: float | None = None,
    focal: float | None = None,
    border: str = "none",
    train_list: str | None = None,
    test_list: str | None = None,
    use_right: bool = False,
    validation: float = 0.1,
    test: float = 0.2,
    order: Literal["name", "random"] = "name",
    skip_unpaired: bool = False,
    max_depth: float = 10.0,
    seed: int = 0,
    look: bool = True,
    one_size: bool = False,
) -> DepthSplits:
    """Load data by name.

    Args:
        name: ``rooms`` (14 small and thin boxes) or ``rooms-easy`` (5 large ones), rendered; ``drive``: a real drive
            with LiDAR under ``root``; ``pairs``: ``root/rgb`` and ``root/depth``, or ``root/train``, ``root/val`` and
            ``root/test`` with these; ``csv``: a CSV file at ``root``; ``kitti`` or ``nyu``.
        root: folder or file of the data; ``TENFOLD_DATA`` where it is not given.
        images: number of rooms to train on; a fifth of it each validates and tests.
        image_size: ``[height, width]`` of the frames, see ``FrameFiles``; by default the rooms' are
            72 x 96, the drive's 54 x 96 (a twentieth).
        depth_scale: values per metre of the depth files.
        focal: focal length in pixels, of ``pairs``.
        border: ``none``, ``kitti`` or ``nyu``: what is cut off every frame.
        train_list: split list of ``kitti`` or ``nyu``.
        test_list: split list of ``kitti`` or ``nyu``.
        use_right: also train on the right camera's frames of KITTI's five-column lists.
        validation: share of the training frames that validates, where the data have no such part.
        test: share of the frames that tests, where the data have no such part.
        order: frames are divided in the order of their ``name`` (the last ones test, as a video
            needs) or at ``random``.
        skip_unpaired: leave out files without a partner instead of refusing them.
        max_depth: of the network; a warning says where most depths lie beyond it.
        seed: of a random order; the rooms themselves are the same for every seed.
        look: whether all of one's own frames, and the test frames of public sets, are read once first.
        one_size: whether one's own training frames must be of one size, as batches without a crop are.

    Raises:
        UserError: the data are missing, or not right.
    """
    if name not in SETS:
        raise UserError(f"there are no depth data {name!r}; there are: {', '.join(SETS)}")
    if not 0 < validation < 1 or not 0 < test < 1:
        raise UserError(f"data.validation and data.test are shares in (0, 1); got {validation} and {test}")
    if image_size is not None and (len(image_size) != 2 or min(image_size) < 8):
        raise UserError(f"data.image_size is [height, width], 8 or more each; got {list(image_size)}")
    size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
    if name in ("rooms", "rooms-easy"):
        if root is not None:
            raise UserError(f"{name} are rendered, {root} has no effect: name your data with --data.name pairs")
        return _rooms(name, images, size or (72, 96))
    if name == "drive":
        folder = find_data(root)
        inner = folder / "driving" / "pandaset-002"
        drive = drive_frames(inner if inner.is_dir() else folder, size=size or (54, 96))
        note = (
            "One drive of eight seconds, split by time: it shows that it works on real data, not that it generalises."
        )
        found = DepthSplits(name, drive["train"], drive["val"], drive["test"], notes=[note])
    elif name == "kitti":
        found = _kitti(find_data(root), train_list, test_list, use_right, validation, border, size)
    elif name == "nyu":
        found = _nyu(find_data(root), train_list, test_list, validation, border)
    else:
        if root is None:
            raise UserError(f"name the {'folder' if name == 'pairs' else 'CSV file'} of your pairs with --data.root")
        parts, notes = _own_pairs(name, Path(root), focal, validation, test, order, skip_unpaired, seed)
        train, held, tested = (
            FrameFiles(parts[part], depth_scale=depth_scale, size=size, border=border) for part in _PARTS
        )
        found = DepthSplits(name, train, held, tested, notes=notes)
    for part in _PARTS:
        if len(getattr(found, part)) == 0:
            raise UserError(f"there are no frames for {part}: give more pairs, or other shares")
    if look:
        for part in _PARTS if name in ("pairs", "csv") else ("test",):
            empty, sizes = require_usable(getattr(found, part))
            if part == "train" and one_size and len(sizes) > 1:
                raise UserError(
                    f"the {len(found.train)} training frames have {len(sizes)} sizes: set a training crop (--data.crop "
                    "'[HEIGHT, WIDTH]') or bring all to one size (--data.image_size '[HEIGHT, WIDTH]')"
                )
            if empty:
                found.notes.append(f"{empty} {part} frames have no valid pixel: nothing is learnt or measured there.")
    _warn_of_units(found.train, max_depth)
    return found


_PARTS = ("train", "validation", "test")


def _rooms(name: str, images: int, size: tuple[int, int]) -> DepthSplits:
    if images < 5:
        raise UserError(f"data.images must be 5 or more; got {images}")
    part = max(1, images // 5)
    boxes, thin = (14, True) if name == "rooms" else (5, False)
    made = render_rooms(images + 2 * part, height=size[0], width=size[1], boxes=boxes, thin=thin, seed=2208)
    frames = FrameArrays(made.images, made.depths, made.focal)
    return DepthSplits(
        name,
        frames.subset(slice(images)),
        frames.subset(slice(images, images + part)),
        frames.subset(slice(images + part, images + 2 * part)),
        dense=True,
        notes=[f"Rendered rooms of {boxes} boxes, {size[0]} x {size[1]} pixels."],
    )


def _kitti(
    root: Path,
    train_list: str | None,
    test_list: str | None,
    right: bool,
    validation: float,
    border: str,
    size: tuple | None,
) -> DepthSplits:
    if train_list is None or test_list is None:
        raise UserError("KITTI needs its Eigen lists: --data.train_list and --data.test_list")
    train = [pair for pair in kitti_pairs(root, train_list, right=right) if pair.depth is not None]
    tested = kitti_pairs(root, test_list)
    scored = [pair for pair in tested if pair.depth is not None]
    kept, held = _last_share(train, validation)
    first, second, third = (
        FrameFiles(part, depth_scale=256, border=border, size=size) for part in (kept, held, scored)
    )
    notes = [f"{len(tested) - len(scored)} of {len(tested)} test frames have no ground truth and are not scored."]
    return DepthSplits("kitti", first, second, third, notes=notes)


def _nyu(root: Path, train_list: str | None, test_list: str | None, validation: float, border: str) -> DepthSplits:
    train = nyu_frames(root, part="train", split=train_list or test_list, border=border)
    tested = nyu_frames(root, part="test", split=test_list)
    count = len(train)
    rows, held = _last_share(list(range(count)), validation)
    return DepthSplits("nyu", _Chosen(train, rows), _Chosen(train, held), tested)


class _Chosen:
    """Some frames of a set."""

    def __init__(self, frames: Frames, rows: Sequence[int]) -> None:
        self.frames, self.rows = frames, list(rows)
        self.names = [frames.names[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
        return self.frames[self.rows[index]]


def _own_pairs(
    name: str,
    root: Path,
    focal: float | None,
    validation: float,
    test: float,
    order: str,
    skip: bool,
    seed: int,
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Pairs by part, and notes."""
    given: dict[str, list[Pair]] = {}
    notes: list[str] = []
    if name == "csv":
        given = pairs_of_csv(root)
    else:
        if not root.is_dir():
            raise UserError(f"{root} is no folder of pairs (rgb/ and depth/ within it)")
        folders = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
        for part, folder in (folders or {"all": root}).items():
            given[part], lonely = pairs_by_stem(folder, focal=float("nan") if focal is None else focal)
            notes += require_partners(given[part], lonely, folder, skip=skip)
    unknown = set(given) - {"train", "val", "validation", "test", "all"}
    if unknown:
        raise UserError(f"{root}: there is no part {min(unknown)!r}; there are train, val, test")
    without = sum(pair.depth is None for pairs in given.values() for pair in pairs)
    if without:
        notes.append(f"{without} images without a depth map in the list are not used.")
    parts = {part: [pair for pair in pairs if pair.depth is not None] for part, pairs in given.items()}
    if "val" in parts:
        parts["validation"] = parts.pop("val")
    pool = parts.pop("all", None)
    if pool is not None:
        if order == "random":
            turn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
            pool = [pool[n] for n in turn]
        parts["train"], parts["test"] = _last_share(pool, test)
        notes.append(f"The {'last' if order == 'name' else 'randomly chosen'} {test:.0%} of the pairs test.")
    if "test" not in parts or "train" not in parts:
        raise UserError(f"{root} needs the parts train and test (val is optional); it has {', '.join(sorted(parts))}")
    if "validation" not in parts:
        parts["train"], parts["validation"] = _last_share(parts["train"], validation)
        notes.append(f"The last {validation:.0%} of the training pairs validate.")
    notes.append(", ".join(f"{len(parts[part]):,} {part}" for part in _PARTS) + " frames.")
    return parts, notes


def _last_share(items: list, share: float) -> tuple[list, list]:
    held = min(max(1, round(share * len(items))), max(len(items) - 1, 0))
    return items[: len(items) - held], items[len(items) - held :]


def _warn_of_units(frames: Frames, max_depth: float) -> None:
    """Look at the first frames; warn where their depths can hardly be metres, or lie beyond the network's range."""
    values = [depth[depth > 0] for _, depth, _ in (frames[n] for n in range(min(_LOOKED_AT, len(frames))))]
    found = torch.cat(values)
    if not len(found):
        raise UserError(
            f"the first {len(values)} training frames have no valid pixel: look with full-skip-depth doctor"
        )
    median, high = float(found.median()), float(found.max())
    problem = unit_problem(median, high)
    if problem:
        warnings.warn(f"depth in the wrong unit? {problem}", TenfoldWarning, stacklevel=3)
    beyond = float((found >= max_depth).float().mean())
    if beyond == 1:
        raise UserError(
            f"all depths (half above {median:.4g} m) lie beyond max_depth {max_depth:g} m: set --model.max_depth, or "
            "--data.depth_scale where the unit is wrong"
        )
    if beyond > 0.5:
        warnings.warn(
            f"{beyond:.0%} of the depths lie beyond max_depth {max_depth:g} m and are not learnt from: set "
            "--model.max_depth",
            TenfoldWarning,
            stacklevel=3,
        )
