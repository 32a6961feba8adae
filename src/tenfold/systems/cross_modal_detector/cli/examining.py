"""``doctor``: a rig's calibration looked at; ``frames``: data of any kind as a file of frames."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.sets.doctor import examine_rig
from tenfold.systems.cross_modal_detector.sets.driving import drive_frames
from tenfold.systems.cross_modal_detector.sets.frame_files import read_frames, write_frames
from tenfold.systems.cross_modal_detector.sets.frames import Frame
from tenfold.systems.cross_modal_detector.sets.info_files import read_infos
from tenfold.systems.cross_modal_detector.sets.nuscenes_tables import NuScenesTables


def doctor(
    source: str, *, root: str | None = None, version: str | None = None, split: str = "all", most: int = 5
) -> str:
    """Check a rig's calibration: do points project into images, do edges fit, are signs and units right.

    Args:
        source: file of frames (JSON or Parquet), info file of mmdet3d (pickle), folder of a drive, or of nuScenes.
        root: folder of the data, for info files.
        version: folder of nuScenes' tables.
        split: of nuScenes.
        most: frames to read.
    """
    if most < 1:
        raise UserError(f"most must be at least 1; got {most}")
    found = examine_rig(_frames(source, root, version, split), most=most)
    lines = [
        f"{found.frames} frames, {found.points:,} points a cloud, {found.boxes} boxes, {found.empty_boxes:.0%} of them "
        "without a point above the lowest fifth"
    ]
    width = max([len(camera.name) for camera in found.cameras], default=6) + 2
    if found.cameras:
        lines.append(f"{'camera':<{width}}{'projected':>10}{'coverage':>10}{'edges':>8}{'best shift':>12}")
    for camera in found.cameras:
        across, down = camera.best_shift
        lines.append(
            f"{camera.name:<{width}}{camera.projected:>10.0%}{camera.coverage:>10.0%}{camera.edges:>8.3f}"
            f"{f'{across:+d}, {down:+d}':>12}"
        )
    mistakes = [*found.mistakes, *(f"{camera.name}: {text}" for camera in found.cameras for text in camera.mistakes)]
    lines += [f"- {text}" for text in mistakes] or ["nothing looks wrong"]
    return "\n".join(lines)


def frames(
    source: str, out: str, *, root: str | None = None, version: str | None = None, split: str = "all"
) -> dict[str, Any]:
    """Write frames of nuScenes' tables or of mmdet3d's info files as JSON or Parquet, without the devkit.

    Args:
        source: folder of nuScenes, or info file.
        out: .json or .parquet, in the folder of the data: names of files are relative to it.
        root: folder of the data, for info files.
        version: folder of nuScenes' tables.
        split: of nuScenes.
    """
    found = _frames(source, root, version, split)
    write_frames(out, found)
    return {"frames": len(found), "boxes": sum(len(frame.names) for frame in found), "file": out}


def _frames(source: str, root: str | None, version: str | None, split: str) -> list[Frame]:
    path = Path(source)
    if path.is_file():
        return read_infos(path, root or path.parent) if path.suffix == ".pkl" else read_frames(path)
    if (path / "cuboids.json").is_file():
        return [frame for part in drive_frames(path).values() for frame in part]
    if not path.is_dir():
        raise UserError(f"there is no file and no folder {source}")
    if version is None:
        raise UserError(f"{source} is a folder: name nuScenes' tables in it with --version, such as v1.0-mini")
    return NuScenesTables(path, version).frames(split)
