"""The manifest of a condensed set: its schema, how a set is described by it and made from it again, and its hash."""

import dataclasses
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

import tenfold
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.zca import ZCA
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.sets.strict_reading import TensorEntry, canonical_json, parse_json


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FileEntry(_Part):
    """A file of the set."""

    path: str
    bytes: int
    sha256: str


class TensorLine(_Part):
    """A tensor of the set."""

    name: str
    dtype: str
    shape: list[int]
    sha256: str


class WhiteningEntry(_Part):
    """Where the whitening's tensors are."""

    mean: Literal["zca_mean"]
    matrix: Literal["zca_matrix"]
    inverse: Literal["zca_inverse"]
    eps: float


class PreprocessingEntry(_Part):
    """From an image file to what networks see."""

    image_shape: list[int]
    resize: Literal["bilinear"]
    value_range: list[float]
    colour_order: Literal["grey", "RGB", "channels"]
    mean: list[float]
    std: list[float]
    zca: WhiteningEntry | None


class SetManifest(_Part):
    """``manifest.json`` of a condensed set.

    Attributes:
        schema_version: version of this layout.
        created: UTC time.
        versions: of the libraries that wrote it.
        method: see `CondensedSet`, as are the fields of the same name.
        settings: hyper-parameters and seeds.
        source: the real data.
        classes: names by index.
        preprocessing: resizing, value range, colour order, mean, deviation, whitening.
        recipe: how a network is trained on the set.
        results: measured figures.
        statistics: of the images in pixel units: lowest, highest, mean, share outside [0, 1].
        poisoned: what an attack did to it; null where none did.
        tensors: name, type, shape and SHA-256 of each.
        files: name, bytes and SHA-256 of each; none where the set is one file.
        sha256: of the canonical JSON of everything else here.
    """

    schema_version: Literal["tenfold-condensed-set-1"]
    created: str
    versions: dict[str, str]
    method: str
    settings: dict[str, Any]
    source: dict[str, Any]
    classes: list[str]
    preprocessing: PreprocessingEntry
    recipe: dict[str, Any]
    results: dict[str, float]
    statistics: dict[str, float]
    poisoned: dict[str, Any] | None
    tensors: list[TensorLine]
    files: list[FileEntry]
    sha256: str


def describe(cset: CondensedSet, entries: dict[str, TensorEntry]) -> dict[str, Any]:
    """The manifest of a set without its files and its hash.

    Args:
        cset: the set.
        entries: what its tensors look like in the file.

    Raises:
        UserError: the set holds what JSON cannot.
    """
    preprocessing = cset.preprocessing
    channels = preprocessing.image_shape[0]
    names = {1: "grey", 3: "RGB"}
    zca = {"mean": "zca_mean", "matrix": "zca_matrix", "inverse": "zca_inverse"}
    return {
        "schema_version": "tenfold-condensed-set-1",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "tenfold": tenfold.__version__,
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
        "method": cset.method,
        "settings": _plain(cset.settings, "settings"),
        "source": _plain(cset.source, "source"),
        "classes": list(cset.classes),
        "preprocessing": {
            "image_shape": list(preprocessing.image_shape),
            "resize": "bilinear",
            "value_range": [0.0, 1.0],
            "colour_order": names.get(channels, "channels"),
            "mean": [float(value) for value in preprocessing.mean],
            "std": [float(value) for value in preprocessing.std],
            "zca": None if preprocessing.zca is None else zca | {"eps": float(preprocessing.zca.eps)},
        },
        "recipe": _plain(dataclasses.asdict(cset.recipe), "recipe"),
        "results": _plain(cset.results, "results"),
        "statistics": pixel_statistics(cset),
        "poisoned": None if cset.poisoned is None else _plain(cset.poisoned, "poisoned"),
        "tensors": [
            {"name": name, "dtype": entry.dtype, "shape": list(entry.shape), "sha256": entry.sha256}
            for name, entry in entries.items()
        ],
    }


def _plain(value: Any, where: str) -> Any:
    """As JSON has it: tuples become lists, numbers of numpy and torch plain ones, tensors nested lists.

    Raises:
        UserError: something has no JSON, or a number is NaN or infinite.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        raise UserError(f"the set's {where} is {value}; a manifest holds finite numbers only")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise UserError(f"the set's {where} holds a {type(value).__name__}, which a manifest cannot")


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own hash."""
    try:
        return manifest | {"sha256": hashlib.sha256(canonical_json(manifest)).hexdigest()}
    except ValueError as error:
        raise UserError(f"the set's description is no valid JSON: {error}") from error


def pixel_statistics(cset: CondensedSet) -> dict[str, float]:
    """Lowest, highest and mean pixel, and the share of pixels outside [0, 1], which is large in clean sets, too."""
    pixels = cset.pixels.double()
    outside = (pixels < 0) | (pixels > 1)
    return {
        "lowest": float(pixels.min()),
        "highest": float(pixels.max()),
        "mean": float(pixels.mean()),
        "share_outside": float(outside.double().mean()),
    }


def parse_manifest(content: bytes, place: str | Path, expect: str | None) -> SetManifest:
    """Read a manifest: its JSON, its schema, its hash.

    Args:
        content: the JSON.
        place: what messages call it.
        expect: the hash that it must have, if known.

    Raises:
        UserError: it is not valid JSON or no manifest, was changed, or is another than expected.
    """
    value = parse_json(content, place)
    try:
        manifest = SetManifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{place} is not a condensed set's manifest: {where}: {first['msg']}") from error
    sealed = canonical_json({name: part for name, part in value.items() if name != "sha256"})
    if hashlib.sha256(sealed).hexdigest() != manifest.sha256:
        raise UserError(f"{place} was changed: its content does not have the hash that it names")
    if expect is not None and manifest.sha256 != expect.strip().lower():
        raise UserError(f"{place} is of another set than expected: its hash is {manifest.sha256}, not {expect}")
    return manifest


def assemble(manifest: SetManifest, tensors: dict[str, Tensor]) -> CondensedSet:
    """The set that a manifest and its tensors describe.

    Raises:
        UserError: they do not make a set.
    """
    entry = manifest.preprocessing
    if len(entry.image_shape) != 3:
        raise UserError(f"image_shape must be (channels, height, width); it is {entry.image_shape}")
    channels, height, width = entry.image_shape
    initial = {name.removeprefix("initial."): value for name, value in tensors.items() if name.startswith("initial.")}
    return CondensedSet(
        images=tensors["images"],
        labels=tensors["labels"],
        classes=tuple(manifest.classes),
        preprocessing=Preprocessing(
            tuple(entry.mean), tuple(entry.std), (channels, height, width), _whitening(entry, tensors)
        ),
        recipe=_recipe(manifest.recipe),
        method=manifest.method,
        settings=manifest.settings,
        source=manifest.source,
        results=manifest.results,
        learning_rates=tensors.get("learning_rates"),
        steps=tensors.get("steps"),
        initial=initial or None,
        poisoned=manifest.poisoned,
    )


def _recipe(values: dict[str, Any]) -> TrainingRecipe:
    unknown = set(values) - {field.name for field in dataclasses.fields(TrainingRecipe)}
    if unknown:
        raise UserError(f"its recipe holds {min(unknown)[:40]!r}, which no recipe has")
    arguments = values.get("arguments", {})
    taken = {"name", "image_shape", "num_classes"} & set(arguments if isinstance(arguments, dict) else ())
    if taken:
        raise UserError(f"the arguments of its network hold {min(taken)!r}, which the set itself decides")
    try:
        return TypeAdapter(TrainingRecipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"its recipe is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _whitening(entry: PreprocessingEntry, tensors: dict[str, Tensor]) -> ZCA | None:
    found = {name: tensors[name] for name in ("zca_mean", "zca_matrix", "zca_inverse") if name in tensors}
    if entry.zca is None:
        if found:
            raise UserError("it holds tensors of a whitening that its preprocessing does not name")
        return None
    size = entry.image_shape[0] * entry.image_shape[1] * entry.image_shape[2]
    shapes = {"zca_mean": (size,), "zca_matrix": (size, size), "zca_inverse": (size, size)}
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape or not found[name].is_floating_point():
            raise UserError(f"its whitening needs a tensor {name!r} of floating point and shape {shape}")
    return ZCA(found["zca_mean"], found["zca_matrix"], found["zca_inverse"], entry.zca.eps)
