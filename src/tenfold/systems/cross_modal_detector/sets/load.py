"""Training and test frames of a set by its name."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tenfold.errors import UserError
from tenfold.files import inside
from tenfold.systems.cross_modal_detector.scoring.protocol import NUSCENES, DetectionProtocol, protocol_for
from tenfold.systems.cross_modal_detector.sets.driving import DRIVE_CLASSES, drive_frames
from tenfold.systems.cross_modal_detector.sets.frame_files import read_frames
from tenfold.systems.cross_modal_detector.sets.frames import NUSCENES_CLASSES, Frame, Missing, Sample, read_frame
from tenfold.systems.cross_modal_detector.sets.info_files import read_infos
from tenfold.systems.cross_modal_detector.sets.nuscenes_tables import NuScenesTables
from tenfold.systems.cross_modal_detector.sets.world import VERSION, WORLD_CLASSES

SetName = Literal["world", "drive", "nuscenes", "infos", "frames"]


@dataclass
class DetectionSplits:
    """A set.

    Attributes:
        name: of the set.
        train: frames to train on, all with a box of a class.
        test: frames to test on.
        classes: names in the order of the labels.
        protocol: by which test frames are scored.
        notes: what a reader of numbers must know.
    """

    name: str
    train: list[Frame]
    test: list[Frame]
    classes: tuple[str, ...]
    protocol: DetectionProtocol
    notes: list[str] = field(default_factory=list)


def load_frames(
    name: SetName,
    root: str | Path | None,
    *,
    version: str = "v1.0-trainval",
    train: str | None = None,
    test: str | None = None,
    sweeps: int = 10,
    classes: Sequence[str] | None = None,
    farthest: float | None = None,
    to_train: bool = True,
) -> DetectionSplits:
    """Find a set's frames.

    Args:
        name: ``world`` (rendered, in nuScenes' format), ``drive``, ``nuscenes``, ``infos`` or ``frames``.
        root: its folder; ``TENFOLD_DATA/driving/pandaset-002`` for ``drive`` where ``None``.
        version: folder of nuScenes' tables.
        train: split, or file below ``root``.
        test: the same.
        sweeps: most earlier clouds of a frame.
        classes: of the detector; those of the set where ``None``.
        farthest: distance to which boxes are scored, metres; nuScenes' own by class where ``None``.
        to_train: whether training frames must hold every class, and boxes.

    Raises:
        UserError: the set is not there or not what it should be, a class does not occur in it, or no training frame
            has a box.
    """
    notes = []
    known: Sequence[str] = NUSCENES_CLASSES
    if name == "drive":
        folder = Path(root) if root is not None else _shared_drive()
        parts = drive_frames(folder)
        frames = (parts["train"], parts["test"])
        known = DRIVE_CLASSES
        notes.append(
            "One drive of eight seconds, split by time: nearly all test objects were seen in training from a few "
            "metres further back, so that it shows that this works on real sensors, not that it generalises."
        )
    else:
        folder = Path(root or ".")
        if not folder.is_dir():
            raise UserError(f"data.root: there is no folder {folder}")
        train, test = train or "train", test or "test"
        if name in ("world", "nuscenes"):
            tables = NuScenesTables(folder, VERSION if name == "world" else version)
            frames = (tables.frames(train, sweeps=sweeps), tables.frames(test, sweeps=sweeps))
            known = WORLD_CLASSES if name == "world" else NUSCENES_CLASSES
        elif name == "infos":
            frames = (read_infos(inside(folder, train), folder), read_infos(inside(folder, test), folder))
        else:
            frames = (read_frames(inside(folder, train)), read_frames(inside(folder, test)))
            known = sorted({box for frame in frames[0] for box in frame.names})
    chosen = tuple(classes or known)
    there = {box for frame in frames[0] for box in frame.names}
    absent = [label for label in classes or () if label not in there]
    if absent and to_train:
        raise UserError(f"data.classes: no training frame has a {absent[0]!r}; there are: {', '.join(sorted(there))}")
    unused = sorted({box for part in frames for frame in part for box in frame.names} - set(chosen))
    if unused:
        notes.append(f"Boxes of other classes are left out: {', '.join(unused)}.")
    kept = [frame for frame in frames[0] if _has_box(frame, chosen)]
    if not kept and to_train:
        raise UserError("no training frame has a box with a LiDAR point in it; look at the frames with the verb doctor")
    if len(kept) < len(frames[0]):
        notes.append(f"{len(frames[0]) - len(kept)} training frames without a box are left out.")
    if not frames[1]:
        raise UserError("there are no test frames")
    official = set(chosen) == set(NUSCENES.classes) and farthest is None
    protocol = NUSCENES if official else protocol_for(chosen, farthest)
    return DetectionSplits(name, kept, frames[1], chosen, protocol, notes)


def _has_box(frame: Frame, classes: Sequence[str]) -> bool:
    return any(name in classes and count != 0 for name, count in zip(frame.names, frame.counts, strict=True))


def _shared_drive() -> Path:
    named = os.environ.get("TENFOLD_DATA")
    if named is None:
        raise UserError(
            "the drive is not embedded: name its folder with --data.root, or that of all data with TENFOLD_DATA "
            "(PandaSet, pandaset.org, reduced to frames.json, cuboids.json, splits.json, images and lidar)"
        )
    return Path(named) / "driving" / "pandaset-002"


class LazySamples(Sequence[Sample]):
    """Samples that are read every time that they are used.

    Args:
        frames: see ``Frame``.
        classes: see ``read_frame``.
        sweeps: see there.
        missing: see there.
        keep_empty: see there.
        lidar: see there.
        images: see there.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        classes: Sequence[str],
        *,
        sweeps: int = 0,
        missing: Missing = "refuse",
        keep_empty: bool = True,
        images: bool = True,
        lidar: bool = True,
    ) -> None:
        self.frames, self.classes = list(frames), list(classes)
        self.sweeps, self.missing, self.keep_empty = sweeps, missing, keep_empty
        self.images, self.lidar = images, lidar

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        """The sample of a number, or the samples of a slice."""
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        return read_frame(
            self.frames[row],
            self.classes,
            sweeps=self.sweeps,
            missing=self.missing,
            keep_empty=self.keep_empty,
            images=self.images,
            lidar=self.lidar,
        )
