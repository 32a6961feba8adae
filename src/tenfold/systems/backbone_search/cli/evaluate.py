"""``tenfold evaluate`` on a run of backbone search."""

import json
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.backbone_search.cli.config_of import config_of
from tenfold.systems.backbone_search.data.average_precision import (
    average_precision,
    coco_results,
    detect_all,
    voc_results,
)
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.options import DetectionOptions
from tenfold.systems.backbone_search.data.splits import load_detection
from tenfold.systems.backbone_search.serving import load


def evaluate(
    run: str,
    *,
    split: Literal["test", "search"] = "test",
    data: Literal["scenes", "bccd", "nuclei", "coco", "voc", "yolo"] | None = None,
    root: str | None = None,
    train: str | None = None,
    test: str | None = None,
    results: Literal["none", "coco", "voc"] = "none",
    out: str | None = None,
) -> dict[str, Any]:
    """Measure a run's detector again: average precision as COCO defines it; result files on demand.

    Args:
        run: folder of the run, or of an imported model.
        split: test or search.
        data: kind of the data, where not those of the run.
        root: folder of the data, where not that of the run.
        train: training split of the data, from which a missing test split is cut.
        test: test split of the data.
        results: write official result files: coco (one JSON) or voc (a text file per class).
        out: folder of the result files; RUN/results where not given.
    """
    detector = load(run)
    seed = 0
    if data is None:
        if not (Path(run) / "config.yaml").exists():
            raise UserError(f"{run} names no data: name them with --data and --root")
        config = config_of(run)
        options, seed = config.data, config.seed
        if root is not None:
            options.root = root
    else:
        options = DetectionOptions(name=data, root=root, train=train, test=test)
    options.height, options.width = detector.extra["height"], detector.extra["width"]
    splits = load_detection(options, seed)
    if list(splits.classes) != detector.classes:
        raise UserError(
            f"the data has the classes {', '.join(splits.classes[:8])}; "
            f"the detector knows {', '.join(detector.classes[:8])}"
        )
    part = splits.test if split == "test" else splits.search
    most = int(detector.extra.get("most_detections", 100))
    images = LetterboxedImages(part, options.height, options.width)
    found = detect_all(detector.model, images, most=most, confidence=0.001 if results != "none" else 0.01)
    measured = average_precision(found, part, most)
    answer: dict[str, Any] = {"data": part.name, "images": len(part), "boxes": part.count, **measured}
    if most != 100:
        answer["most_detections"] = most
    if results != "none":
        folder = Path(out) if out else Path(run) / "results"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
        if results == "coco":
            files = {"detections.json": json.dumps(coco_results(found, part, part.image_ids))}
        else:
            files = voc_results(found, part)
        for name, text in files.items():
            write_atomically(folder / name, text)
        answer["files"] = [str(folder / name) for name in files]
    return answer
