"""What the command line does with the network of a run: measure, export, predict."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError

from tenfold.data import read_images
from tenfold.data.options import FILE_SETS, ImageOptions
from tenfold.data.preprocessing import Preprocessing
from tenfold.errors import UserError
from tenfold.files import inside, make_folder, printable, refuse_overwriting
from tenfold.models.folder import MANIFEST, load_manifest, save_model
from tenfold.models.onnx import export_onnx
from tenfold.run import read_config
from tenfold.settings import wording
from tenfold.systems.condensation_audit.data.load import Data, load_data, require_shape
from tenfold.systems.condensation_audit.serving import SYSTEM, load_served, reading_of, shape_of
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
    network, extra = load_served(run, factory)
    shape = shape_of(run, load_manifest(run, SYSTEM))
    found = _data_of(run, data, root, shape, reading_of(shape, extra))
    require_shape(found, shape, run)
    if list(found.test.classes) != extra.get("classes"):
        raise UserError(f"{run} tells other classes apart than those of {found.name}")
    with torch.inference_mode():
        parts = [network(part.float() / 255).argmax(1) for part in found.test.images.split(1024)]
    accuracy = float((torch.cat(parts) == found.test.labels).double().mean())
    return {"data": found.name, "images": len(found.test), "accuracy": round(100 * accuracy, 3)}


def _options_of(run: str) -> ImageOptions:
    """The data of a run, as its config.yaml says.

    Raises:
        UserError: it does not say it rightly.
    """
    try:
        return TypeAdapter(ImageOptions).validate_python(read_config(run).get("data"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("data", *first["loc"])))
        raise UserError(f"{printable(run)}/config.yaml: {printable(where)}: {wording(first['msg'])}") from error


def _data_of(run: str, name: str | None, root: str | None, shape: Sequence[int], reading: Preprocessing) -> Data:
    """The run's data, or others, brought to their size as the model says."""
    options = ImageOptions()
    if (Path(run) / "config.yaml").exists():
        options = _options_of(run)
    elif name is None:
        raise UserError(f"{run} names no data: name them with --data")
    if name is not None and name != options.name:
        options = ImageOptions(name=name, root=root)  # type: ignore[arg-type]
    elif root is not None:
        options = replace(options, root=root)
    if options.name not in FILE_SETS and options.resize is None and shape[1] == shape[2]:
        options = replace(options, resize=shape[1])
    return load_data(options, reading=reading, prefix="--")


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
    manifest = load_manifest(run, SYSTEM)
    folder = make_folder(out if out else Path(run) / "export")
    if to == "safetensors":
        refuse_overwriting(folder / MANIFEST, Path(run) / MANIFEST)
        if extra.get("zca"):
            place = folder / SET
            if place.exists():
                raise UserError(f"{place} already exists; name another place with --out")
            save_set(place, load_set(inside(run, str(extra["set"])), allow_poisoned=True, allow_network=factory))
            extra = {**extra, "set": SET}
        save_model(
            folder,
            network.network,
            system=manifest.system,
            builder=manifest.builder,
            arguments=manifest.arguments,
            extra=extra,
        )
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
    shape = shape_of(run, load_manifest(run, SYSTEM))
    classes = extra.get("classes")
    if not isinstance(classes, list) or not classes:
        raise UserError(f"{printable(run)}: its manifest does not name its classes")
    lines = []
    for name, image in read_images(inputs, reading_of(shape, extra)):
        with torch.inference_mode():
            probabilities = network(image[None].float() / 255)[0].softmax(0)
        label = int(probabilities.argmax())
        if label >= len(classes):
            raise UserError(f"{printable(run)} names {len(classes)} classes; its network gives {len(probabilities)}")
        lines.append(
            {
                "input": name,
                "class": label,
                "label": printable(classes[label]),
                "confidence": round(float(probabilities[label]), 6),
            }
        )
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


SET = "set.cset"
"""Name of the set that a model folder carries where its images are whitened."""
