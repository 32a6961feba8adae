"""``export`` and ``import``."""

import json
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import make_folder
from tenfold.models.checkpoints import load_strictly
from tenfold.models.folder import save_model
from tenfold.systems.cross_modal_detector.delivery.models import SYSTEM, extra_of, load_detector, served
from tenfold.systems.cross_modal_detector.delivery.onnx import export_detector
from tenfold.systems.cross_modal_detector.networks.published import build_published, find_configuration, read_official
from tenfold.systems.cross_modal_detector.sets.frames import NUSCENES_CLASSES

_VIEWS = 6


def export(
    run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None, views: int = _VIEWS
) -> dict[str, Any]:
    """Write a run's detector for deployment; ONNX is checked against PyTorch before it is kept.

    Args:
        run: folder of the run.
        to: onnx: model.onnx, the dense parts, from images and the grid of the cloud to scores and boxes (voxels and the
            sparse encoder, whose shapes depend on the cloud, stay in PyTorch); safetensors: the weights with their
            manifest.
        out: folder to write; RUN/export where not given.
        views: cameras that the ONNX file takes.
    """
    if views < 1:
        raise UserError(f"views must be at least 1; got {views}")
    detector, manifest = load_detector(run)
    folder = make_folder(out or Path(run) / "export")
    if to == "safetensors":
        save_model(folder, detector, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    model = served(detector, manifest)
    metadata = {
        "system": SYSTEM,
        "tenfold.classes": json.dumps(list(model.classes)),
        "tenfold.image": "red, green, blue in [0, 255], not normalized",
        "tenfold.grid": "of tenfold.systems.cross_modal_detector.delivery.onnx.grid_of(detector, clouds)",
        "tenfold.boxes": "x, y, z, length, width, height, yaw, vx, vy in the LiDAR frame",
    }
    done = export_detector(detector, folder / "model.onnx", views=views, image_size=model.image_size, metadata=metadata)
    return {
        "onnx": str(done.path),
        "largest_difference": done.max_difference,
        "left_in_pytorch": "points to grid" if detector.lidar is not None else "nothing",
    }


def import_official(checkpoint: str, *, configuration: str, out: str | None = None) -> dict[str, Any]:
    """Take an official CMT checkpoint into a model folder, strictly; nothing in it is executed.

    Args:
        checkpoint: the file.
        configuration: name of its official configuration, such as cmt_voxel0075_vov_1600x640_cbgs.
        out: folder to write; the checkpoint's name without its suffixes where not given.
    """
    found = find_configuration(configuration)
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    arguments: dict[str, Any] = {"configuration": configuration.removesuffix(".py")}
    state = read_official(checkpoint)
    detector = build_published(**arguments)
    load_strictly(detector, state, checkpoint)
    save_model(
        folder,
        detector,
        system=SYSTEM,
        builder="published",
        arguments=arguments,
        extra=extra_of(NUSCENES_CLASSES, found.image_size, 10 if found.voxel else 0, "zero", data=None),
    )
    return {"model": str(folder), "parameters": sum(p.numel() for p in detector.parameters())}
