"""``tenfold predict`` on a run of backbone search."""

import io
import json
from collections.abc import Callable
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.backbone_search.data.detection_set import read_rgb
from tenfold.systems.backbone_search.serving import OnnxDetector, ServedDetector, draw_boxes, load, load_onnx


def predict(run: str, inputs: list[str], *, confidence: float = 0.3, out: str | None = None) -> str:
    """Find objects in pictures: one JSON line per picture; pictures with boxes drawn on demand.

    Args:
        run: folder of the run, or of an imported model.
        inputs: image files.
        confidence: least score, in [0, 1].
        out: folder for copies of the pictures with boxes; none are drawn where not given.
    """
    return _predict(lambda: load(run), inputs, confidence, out)


def predict_onnx(path: str, inputs: list[str], *, confidence: float = 0.3, out: str | None = None) -> str:
    """Find objects in pictures with an exported file on onnxruntime: what ``predict`` gives.

    Args:
        path: model.onnx or model-int8.onnx of ``tenfold export``, which carries classes, size and score rule along.
        inputs: image files.
        confidence: least score, in [0, 1].
        out: folder for copies of the pictures with boxes; none are drawn where not given.
    """
    return _predict(lambda: load_onnx(path), inputs, confidence, out)


def _predict(
    loaded: Callable[[], ServedDetector | OnnxDetector], inputs: list[str], confidence: float, out: str | None
) -> str:
    if not 0 <= confidence <= 1:
        raise UserError(f"confidence is a score in [0, 1]; got {confidence}")
    detector = loaded()
    pictures = [(name, read_rgb(name)) for name in inputs]  # all are read before anything is written
    folder = Path(out) if out else None
    if folder is not None:
        drawn = [folder / f"{Path(name).stem}.png" for name in inputs]
        if len(set(drawn)) < len(drawn):
            raise UserError("two of the pictures have one name; draw them into different folders")
        taken = [path for path in drawn if path.exists()]
        if taken:
            raise UserError(f"{taken[0]} is there already; name another folder with --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    lines = []
    for name, image in pictures:
        found = detector.detect(image, confidence)
        objects = [
            {"class": detector.classes[label], "score": round(score, 4), "box": [round(value, 1) for value in box]}
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
            )
        ]
        line = {"input": name, "width": image.shape[1], "height": image.shape[0], "objects": objects}
        if folder is not None:
            file = io.BytesIO()
            draw_boxes(image, found, detector.classes).save(file, "PNG")
            path = folder / f"{Path(name).stem}.png"
            write_atomically(path, file.getvalue())
            line["picture"] = str(path)
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines)
