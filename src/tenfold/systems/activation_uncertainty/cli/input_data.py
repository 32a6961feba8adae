"""What the command line's verbs work on: a main model from a run, or of the user's, and data that it takes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data import normalize, read_images
from tenfold.errors import UserError
from tenfold.export import Manifest
from tenfold.networks import import_object
from tenfold.systems.activation_uncertainty.data.tables import column, feature_rows, read_table
from tenfold.systems.activation_uncertainty.network.calling import Inputs


def open_data(
    data: str,
    manifest: Manifest | None = None,
    *,
    columns: Sequence[str] | None = None,
    id_column: str | None = None,
    batch_size: int = 512,
) -> Callable[[], Iterator[tuple[Inputs, Tensor]]]:
    """Data by name, as a function that gives ``(inputs, ids)`` from the start each time.

    Args:
        data: ``package.module:function``, which gives an iterable of inputs or ``(inputs, ids)``; a ``.csv`` or
            ``.parquet`` file; a ``.npy`` file of float32 inputs (of uint8 images for a run on images).
        manifest: of a run, whose columns and normalization decide how rows become inputs.
        columns: of a table, for a model of the user's: the inputs in order.
        id_column: of a table.
        batch_size: rows at a time.

    Raises:
        UserError: the data are missing, damaged or empty, or do not fit the model.
    """
    path = Path(data)
    if path.suffix in (".csv", ".parquet", ".gz"):
        if manifest is not None and manifest.builder != "factory":
            return lambda: _named_columns(path, manifest, id_column)
        return lambda: feature_rows(path, columns, id_column)
    if path.suffix == ".npy":
        return lambda: _array_rows(path, manifest, batch_size)
    if ":" in data:
        make = import_object(data, "the data")

        def batches() -> Iterator[Any]:
            from tenfold.systems.activation_uncertainty.network.calling import numbered

            found = make()
            if not isinstance(found, Iterable):
                raise UserError(f"the data {data!r} gave a {type(found).__name__}, over which one cannot go")
            return numbered(found)

        return batches
    raise UserError(f"{data}: data are a .csv, .parquet or .npy file, or package.module:function")


def first_batch(batches: Callable[[], Iterator[tuple[Inputs, Tensor]]], data: str) -> Inputs:
    """The first inputs, for shapes; a ``UserError`` where there are none."""
    first = next(iter(batches()), None)
    if first is None:
        raise UserError(f"{data} holds no rows")
    return first[0]


def _named_columns(path: Path, manifest: Manifest, id_column: str | None) -> Iterator[tuple[Inputs, Tensor]]:
    """Rows of a table as the columns that a run's network takes: scalars by name, vectors as ``name_0, name_1 ...``."""
    facts: dict[str, Any] = manifest.extra["example"]
    sizes = manifest.arguments.get("sizes")
    given = 0
    for batch in read_table(path):
        inputs = {}
        for name, fact in facts.items():
            width = fact["shape"][0] if fact["shape"] else 0
            names = [f"{name}_{n}" for n in range(width)] if width else [name]
            values = np.stack([column(batch, own, path, given) for own in names], axis=1)
            if fact["type"] == "int64":
                _check_sizes(values, name, sizes, path)
            tensor = torch.from_numpy(values).to(getattr(torch, fact["type"]))
            inputs[name] = tensor if width else tensor[:, 0]
        ids = np.arange(given, given + len(batch)) if id_column is None else column(batch, id_column, path, given)
        given += len(batch)
        yield inputs, torch.from_numpy(ids.astype(np.int64))


def _check_sizes(values: np.ndarray, name: str, sizes: Any, path: Path) -> None:
    if (values != np.rint(values)).any():
        raise UserError(f"{path}: column {name!r} must hold whole numbers")
    limits = np.array([sizes[name]] if isinstance(sizes, dict) else sizes)
    if (values < 0).any() or (values >= limits).any():
        raise UserError(
            f"{path}: column {name!r} names a value that the model does not know; it knows 0 to {limits.max() - 1}"
        )


def _array_rows(path: Path, manifest: Manifest | None, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the array {path}: {error}") from error
    if array.ndim == 0 or len(array) == 0:
        raise UserError(f"{path} holds no rows")
    images = manifest is not None and bool(manifest.extra.get("normalization"))
    if images and array.dtype != np.uint8:
        raise UserError(f"{path} holds {array.dtype}; images are uint8, 0 to 255")
    if images and list(array.shape[1:]) != list(manifest.arguments["image_shape"]):  # type: ignore[union-attr]
        raise UserError(f"{path} has shape {array.shape}; the model takes (n, {manifest.arguments['image_shape']})")  # type: ignore[union-attr]
    for start in range(0, len(array), batch_size):
        part = torch.from_numpy(np.array(array[start : start + batch_size]))
        if images and manifest is not None:
            part = normalize(part, manifest.extra["normalization"]["mean"], manifest.extra["normalization"]["std"])
        elif part.is_floating_point():
            part = part.float()
            if not torch.isfinite(part).all():
                raise UserError(f"{path} holds NaN or infinite values in rows {start} to {start + len(part) - 1}")
        yield part, torch.arange(start, start + len(part))


def named_inputs(inputs: Sequence[str], manifest: Manifest) -> Iterator[tuple[list[str], Inputs]]:
    """What ``tenfold predict`` is given: image files, or tables for a run on tables; names and inputs."""
    if manifest.extra["normalization"]:
        for name, image in read_images(inputs, manifest.arguments["image_shape"]):
            facts = manifest.extra["normalization"]
            yield [name], normalize(image[None], facts["mean"], facts["std"])
        return
    for rows, ids in chain.from_iterable(open_data(path, manifest)() for path in inputs):
        yield [str(number) for number in ids.tolist()], rows
