"""``predict``: boxes of frames of one's own, and drawings of them."""

import json
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import make_folder, write_atomically
from tenfold.systems.cross_modal_detector.delivery.drawings import draw_from_above, draw_in_image, png_of, tile
from tenfold.systems.cross_modal_detector.delivery.models import ServedDetector, load
from tenfold.systems.cross_modal_detector.method import Detections
from tenfold.systems.cross_modal_detector.sets.frame_files import read_frames
from tenfold.systems.cross_modal_detector.sets.frames import Frame


def predict(
    run: str,
    inputs: list[str],
    *,
    out: str | None = None,
    threshold: float = 0.2,
    missing: str | None = None,
    missing_files: str = "refuse",
) -> str:
    """Find boxes in frames; one JSON line per frame, boxes in the frame's LiDAR coordinates.

    Args:
        run: folder of the run.
        inputs: files of frames, JSON or Parquet (see the guide: a rig of your own).
        out: folder that gets TOKEN-above.png and TOKEN-images.png, with true boxes in green where frames have them.
        threshold: boxes with a lower score are left out.
        missing: zero or drop: what is done about sensors that are not there; as the model says where not given.
        missing_files: refuse frames whose files are not there, or take those sensors as missing.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold must lie in [0, 1]; got {threshold}")
    if missing not in (None, "zero", "drop") or missing_files not in ("refuse", "missing"):
        raise UserError("missing is zero or drop, missing_files is refuse or missing")
    served = load(run)
    folder = None if out is None else make_folder(out)
    lines = []
    for file in inputs:
        for frame in read_frames(file):
            sample = served.read(frame, missing_files)  # type: ignore[arg-type]
            found = served([sample], missing=missing)[0]  # type: ignore[arg-type]
            line: dict[str, Any] = {"input": file, "token": frame.token, "boxes": _boxes(served, found, threshold)}
            if folder is not None:
                line["files"] = _draw(served, frame, sample, found, threshold, folder)
            lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines)


def _boxes(served: ServedDetector, found: Detections, threshold: float) -> list[dict[str, Any]]:
    rows = []
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= threshold:
            values = [round(value, 4) for value in box]
            rows.append(
                {
                    "class": served.classes[label],
                    "score": round(score, 4),
                    "centre": values[:3],
                    "size": values[3:6],
                    "yaw": values[6],
                    "velocity": values[7:],
                }
            )
    return rows


def _draw(
    served: ServedDetector, frame: Frame, sample: Any, found: Detections, threshold: float, folder: Path
) -> list[str]:
    kept = found.scores.numpy() >= threshold
    boxes, scores = found.boxes.numpy()[kept], found.scores.numpy()[kept]
    truth = sample.boxes if len(sample.boxes) else None
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in frame.token)
    area = served.detector.area.tolist()
    above = folder / f"{name}-above.png"
    write_atomically(above, png_of(draw_from_above(sample.points, boxes, scores, truth, area=area, side=720)))
    files = [str(above)]
    prepared = served.pipeline.test(sample)
    images = [
        draw_in_image(image, matrix, boxes, scores, truth, scale=max(1, round(480 / served.image_size[1])))
        for image, matrix in zip(prepared.images, prepared.lidar2img, strict=True)
        if image is not None
    ]
    if images:
        sheet = folder / f"{name}-images.png"
        write_atomically(sheet, png_of(tile(images, min(3, len(images)))))
        files.append(str(sheet))
    return files
