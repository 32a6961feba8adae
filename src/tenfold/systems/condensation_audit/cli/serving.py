"""What the command line does with the network of a run: measure, export, predict."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.data import read_images
from tenfold.data.options import ImageOptions
from tenfold.errors import UserError
from tenfold.export import export_onnx, load_manifest, save_model
from tenfold.run import read_config
from tenfold.systems.condensation_audit.data.load import Data, load_data, require_shape
from tenfold.systems.condensation_audit.serving import load_served
from tenfold.systems.condensation_audit.sets.files import load_set, save_set


def evaluate(
    run: str, *, data: str | None = None, root: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Measure a run's network again on its test images.

    Args:
        run: folder of the run, or of a model.
        data: name of the data, where not those of the run.
        root: folder of the data, where not that of the run.
        factory: of a network of your own: it must be repeated, a file alone never runs code.
    """
    network, _ = load_served(run, factory)
    found = _data_of(run, data, root)
    require_shape(found, load_manifest(run).arguments["image_shape"], run)
    with torch.inference_mode():
        parts = [network(part.float() / 255).argmax(1) for part in found.test.images.split(1024)]
    accuracy = float((torch.cat(parts) == found.test.labels).double().mean())
    return {"data": found.name, "images": len(found.test), "accuracy": round(100 * accuracy, 3)}


def _data_of(run: str, name: str | None, root: str | None) -> Data:
    options: dict[str, Any] = {}
    if (Path(run) / "config.yaml").exists():
        options = dict(read_config(run)["data"])
    options |= {key: value for key, value in {"name": name, "root": root}.items() if value is not None}
    if "name" not in options:
        raise UserError(f"{run} names no data: name them with --data")
    return load_data(ImageOptions(**options))


def export(
    run: str, *, to: Literal["onnx", "safetensors"] = "onnx", out: str | None = None, factory: str | None = None
) -> dict[str, Any]:
    """Write a run's network for deployment, range guard and preprocessing inside; ONNX is checked against PyTorch.

    Args:
        run: folder of the run, or of a model.
        to: onnx: pixels in [0, 1] to logits; safetensors: the weights with their manifest.
        out: folder to write; RUN/export where not given.
        factory: of a network of your own.
    """
    network, extra = load_served(run, factory)
    manifest = load_manifest(run)
    folder = Path(out) if out else Path(run) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if to == "safetensors":
        if extra.get("zca"):
            save_set(folder / extra["set"], load_set(Path(run) / extra["set"]), overwrite=True)
        save_model(folder, network.network, **manifest.model_dump(include={"system", "builder", "arguments", "extra"}))
        return {"safetensors": str(folder / "model.safetensors"), "manifest": str(folder / "model.json")}
    example = torch.rand(2, *manifest.arguments["image_shape"], generator=torch.Generator().manual_seed(0))
    exported = export_onnx(
        network, [example], folder / "model.onnx", input_names=["pixels"], output_names=["logits"], batched=[True]
    )
    return {"onnx": str(exported.path), "largest_difference": exported.max_difference}


def predict(run: str, inputs: list[str], *, factory: str | None = None) -> str:
    """Predict with a run's network; one JSON line per image.

    Args:
        run: folder of the run, or of a model.
        inputs: image files; or .npy files of uint8, one image (height, width[, channels]) or several (n, channels,
            height, width).
        factory: of a network of your own.
    """
    network, extra = load_served(run, factory)
    lines = []
    for name, image in read_images(inputs, load_manifest(run).arguments["image_shape"]):
        with torch.inference_mode():
            probabilities = network(image[None].float() / 255)[0].softmax(0)
        label = int(probabilities.argmax())
        lines.append(
            {
                "input": name,
                "class": label,
                "label": extra["classes"][label],
                "confidence": round(float(probabilities[label]), 6),
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
