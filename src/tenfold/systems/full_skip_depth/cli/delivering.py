"""``export``, ``import``, ``kitti-zip``."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.models.folder import save_model
from tenfold.systems.full_skip_depth.delivery.models import BUILDER, SYSTEM, load_network, served
from tenfold.systems.full_skip_depth.delivery.onnx import export_depth_onnx
from tenfold.systems.full_skip_depth.networks.depth_network import build_network, predict_depth
from tenfold.systems.full_skip_depth.networks.official_encoders import OfficialFormat, load_encoder
from tenfold.systems.full_skip_depth.sets.depth_files import encode_depth_png
from tenfold.systems.full_skip_depth.sets.frames import read_photo
from tenfold.systems.full_skip_depth.sets.kitti import benchmark_images
from tenfold.systems.full_skip_depth.training.augmentation import KB_HEIGHT, KB_WIDTH

_KITTI_IMAGES = 500


def export(
    run: str,
    *,
    to: Literal["onnx", "safetensors"] = "onnx",
    out: str | None = None,
    size: list[int] | None = None,
    dynamic: bool = True,
) -> dict[str, Any]:
    """Write a run's network for deployment; ONNX is checked against PyTorch at several sizes before it is kept.

    Args:
        run: folder of the run.
        to: onnx: model.onnx, which takes images (batch, 3, height, width) in [0, 1] and gives metres, normalization,
            range and calibration inside; safetensors: the weights with their manifest.
        out: folder to write; RUN/export where not given.
        size: [height, width] to trace at; that of training where not given.
        dynamic: whether batch, height and width may change.
    """
    network, manifest = load_network(run)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        save_model(folder, network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    size = size or manifest.extra.get("image_size") or [480, 640]
    if len(size) != 2 or min(size) < 33:
        raise UserError(f"size is [height, width], 33 or more each; got {size}")
    extra = {
        "system": SYSTEM,
        "tenfold.input": "RGB in [0, 1], not normalized",
        "tenfold.output": "metres along the optical axis",
        "tenfold.max_depth": str(manifest.arguments["max_depth"]),
        "tenfold.trained_size": json.dumps(manifest.extra.get("image_size")),
        "tenfold.calibration": json.dumps(manifest.extra.get("calibration")),
    }
    done = export_depth_onnx(
        served(network, manifest),
        folder / "model.onnx",
        size=(size[0], size[1]),
        dynamic=dynamic,
        focal=network.focal_reference is not None,
        metadata=extra,
    )
    return {"onnx": str(done.path), "largest_difference": done.max_difference, "checked_sizes": list(done.sizes)}


def import_official(
    checkpoint: str,
    *,
    format: OfficialFormat,
    encoder: str,
    out: str | None = None,
    max_depth: float = 80.0,
    width: int = 512,
) -> dict[str, Any]:
    """Take the encoder of a BTS or AdaBins checkpoint into a model folder, under timm's names; its decoder is new.

    Args:
        checkpoint: the file; nothing in it is executed.
        format: bts or adabins.
        encoder: the same network of timm, such as timm/resnet50 or timm/tf_efficientnet_b5.
        out: folder to write; the checkpoint's name without its suffixes where not given. A run starts from its encoder
            with --model.encoder_weights.
        max_depth: of the new head.
        width: of the new decoder.
    """
    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    arguments: dict[str, Any] = {"encoder": encoder, "max_depth": max_depth, "width": width, "skip_projection": 64}
    network = build_network(**arguments)
    unused = load_encoder(network.encoder, checkpoint, format)
    note = "the encoder is imported, the decoder is not trained"
    save_model(
        folder,
        network,
        system=SYSTEM,
        builder=BUILDER,
        arguments=arguments,
        extra={"data": None, "image_size": None, "calibration": None, "note": note},
    )
    return {"model": str(folder), "unused_tensors": len(unused), "note": note}


def kitti_zip(
    run: str, root: str, *, split: str | None = None, out: str = "submission.zip", flip: bool = False
) -> dict:
    """Write the archive that KITTI's depth prediction server takes: 500 flat 16-bit PNG files of 352 x 1216.

    Args:
        run: folder of the run.
        root: folder with depth_selection/test_depth_prediction_anonymous, or that folder.
        split: list of the images' names; all images where not given.
        out: the archive.
        flip: average with the mirrored prediction of the mirrored image.
    """
    network, manifest = load_network(run)
    model = served(network, manifest)
    pairs = benchmark_images(root, split)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for number, pair in enumerate(pairs):
            image = read_photo(pair.image)
            if tuple(image.shape[1:]) != (KB_HEIGHT, KB_WIDTH):
                raise UserError(f"{pair.image} has {image.shape[1]} x {image.shape[2]} pixels, not 352 x 1216")
            focal = torch.tensor([pair.focal]) if network.focal_reference is not None else None
            depth = predict_depth(model, image[None].float() / 255, focal, flip=flip, limits=(1 / 256, 255.99))
            archive.writestr(f"{number:010d}.png", encode_depth_png(depth[0].numpy(), 256))
    write_atomically(out, content.getvalue())
    return {
        "archive": out,
        "images": len(pairs),
        "complete": len(pairs) == _KITTI_IMAGES,
        "note": "" if len(pairs) == _KITTI_IMAGES else f"the server expects {_KITTI_IMAGES} images",
    }
