"""``tenfold export`` on a run of backbone search."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.models.folder import load_manifest, save_model
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.detector.official import to_official
from tenfold.systems.backbone_search.serving import export_detector, load


def export(run: str, *, to: Literal["onnx", "safetensors", "yolox"] = "onnx", out: str | None = None) -> dict[str, Any]:
    """Write a run's detector for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run, or of an imported model.
        to: onnx (one picture in, boxes and probabilities out, all facts in its metadata), safetensors, or yolox: the
            official names, for detectors of that family.
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
    done = export_detector(detector.model, folder / "model.onnx", detector.extra)
    return {"onnx": str(done.path), "largest_difference": done.max_difference, "classes": detector.classes}
