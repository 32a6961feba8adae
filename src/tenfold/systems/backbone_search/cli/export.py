"""``tenfold export`` on a run of backbone search."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.models.folder import load_manifest, save_model
from tenfold.systems.backbone_search.cli.config_of import config_of
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.splits import load_detection
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.detector.official import to_official
from tenfold.systems.backbone_search.objectives.int8 import quantize
from tenfold.systems.backbone_search.serving import export_detector, load, metadata_of

_CALIBRATION_IMAGES = 64


def export(
    run: str, *, to: Literal["onnx", "int8", "safetensors", "yolox"] = "onnx", out: str | None = None
) -> dict[str, Any]:
    """Write a run's detector for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run, or of an imported model.
        to: onnx (one picture in, boxes and probabilities out, all facts in its metadata), int8 (the same with 8-bit
            convolutions, calibrated on training images of the run), safetensors, or yolox: the official names, for
            detectors of that family.
        out: folder to write; RUN/export where not given.
    """
    detector = load(run)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        if folder.resolve() == Path(run).resolve():
            raise UserError(f"{folder} holds the model itself; name another folder with --out")
        manifest = load_manifest(run)
        save_model(folder, detector.model, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    if to == "yolox":
        if not isinstance(detector.model.plan.backbone, DarknetPlan):
            raise UserError(f"{run} holds a mobile backbone, for which there are no official names of YOLOX")
        path = folder / "yolox.pth"
        temporary = path.with_suffix(".tmp")
        torch.save({"model": to_official(detector.model.state_dict())}, temporary)
        temporary.replace(path)
        return {"yolox": str(path)}
    images = _calibration_images(run) if to == "int8" else None  # before anything is written
    done = export_detector(detector.model, folder / "model.onnx", detector.extra)
    if images is not None:
        quantize(folder / "model.onnx", folder / "model-int8.onnx", images, metadata_of(detector.extra))
        return {"onnx": str(done.path), "int8": str(folder / "model-int8.onnx"), "calibrated_on": len(images)}
    return {"onnx": str(done.path), "largest_difference": done.max_difference, "classes": detector.classes}


def _calibration_images(run: str) -> torch.Tensor:
    if not (Path(run) / "config.yaml").exists():
        raise UserError(f"{run} names no data to calibrate on: export a run of backbone-search, not an imported model")
    config = config_of(run)
    images = load_detection(config.data, config.seed).fit
    rows = range(min(len(images), _CALIBRATION_IMAGES))
    size = (config.data.height, config.data.width)
    return LetterboxedImages(images.subset(rows, images.name), *size)[list(rows)]
