"""Rows that a verb works on: tables, arrays, images, or what a function of the user's gives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.data import find_unreadable, read_images
from tenfold.data.folder import is_image_name
from tenfold.errors import UserError
from tenfold.files import files_below, printable
from tenfold.models.builders import import_object
from tenfold.systems.activation_uncertainty.data.tables import TableColumns, feature_rows, is_table, named_rows
from tenfold.systems.activation_uncertainty.network.batches import Batch, Parts, check_parts, read_batches
from tenfold.systems.activation_uncertainty.network.calling import Inputs, describe
from tenfold.systems.activation_uncertainty.serving.loading import MainModel

Rows = Callable[[], Iterator[Batch]]
"""Gives the batches from the start each time."""


def open_data(
    data: str,
    model: MainModel,
    *,
    columns: TableColumns | None = None,
    parts: Parts | None = None,
    batch_size: int = 512,
) -> Rows:
    """Data by name.

    Args:
        data: ``package.module:function``, which gives an iterable of inputs or ``Batch``; a ``.csv`` or ``.parquet``
            file; a ``.npy`` file of float32 inputs. For a run on images: a folder of image files, which are named by
            their paths in it, or a ``.npy`` file of uint8 images.
        model: whose columns and normalization decide how rows become inputs.
        columns: of a table; its inputs are for a model of the user's.
        parts: what the parts of a batch are that a function gives.
        batch_size: rows at a time.

    Raises:
        UserError: the data are missing, damaged or empty, or do not fit the model.
    """
    columns = columns or TableColumns()
    check_parts(parts)
    is_function = ":" in data and not Path(data).exists()
    if parts is not None and not is_function:
        raise UserError(f"--parts is for batches that a function gives, and {printable(data)} is a file")
    if (columns.inputs is not None or columns.id is not None) and not is_table(data):
        raise UserError(f"--columns and --id_column are for tables, which {printable(data)} is not")
    if is_table(data):
        if model.facts is not None:
            return _table_of_run(data, model, columns)
        return lambda: feature_rows(data, columns)
    if Path(data).is_dir():
        return _image_rows(Path(data), model, min(batch_size, 64))
    if Path(data).suffix == ".npy":
        return lambda: _array_rows(Path(data), model, batch_size)
    if is_function:
        return _from_function(data, parts)
    raise UserError(
        f"{printable(data)}: data are a .csv, .csv.gz, .parquet or .npy file, a folder of images, or "
        "package.module:function"
    )


def _table_of_run(data: str, model: MainModel, columns: TableColumns) -> Rows:
    facts, manifest = model.facts, model.manifest
    assert facts is not None and manifest is not None
    if model.preprocessing is not None:
        raise UserError(f"{printable(data)} is a table, and the run's model takes images: give image files or a .npy")
    if columns.inputs is not None:
        raise UserError(f"--columns is for a model of your own; this run takes {', '.join(facts.example)} by name")
    sizes = manifest.arguments.get("sizes") or {}
    by_name = sizes if isinstance(sizes, dict) else {"categories": sizes}
    example = {name: fact.model_dump() for name, fact in facts.example.items()}
    return lambda: named_rows(data, example, by_name, columns.id)


def _from_function(data: str, parts: Parts | None) -> Rows:
    make = import_object(data, "the data")

    def batches() -> Iterator[Batch]:
        found = make()
        if not isinstance(found, Iterable):
            raise UserError(f"the data {data!r} gave a {type(found).__name__}, over which one cannot go")
        return read_batches(_explained(found, parts), parts=parts)

    return batches


def _explained(batches: Iterable[Any], parts: Parts | None) -> Iterator[Any]:
    """The batches; one that has parts must be explained."""
    for batch in batches:
        if parts is None and isinstance(batch, tuple | list) and not isinstance(batch, Batch):
            raise UserError(
                f"a batch is {describe(batch)}: say what each of them is, as with --parts '[inputs, labels]', "
                "'[inputs, ids]' or '[inputs, inputs]'"
            )
        yield batch


def first_inputs(batches: Rows, data: str) -> Inputs:
    """The first inputs that have rows, for shapes; a ``UserError`` where there are none."""
    for inputs, ids in batches():
        if ids is not None and len(ids):
            return inputs
    raise UserError(f"{printable(data)} holds no rows")


def _image_rows(folder: Path, model: MainModel, batch_size: int) -> Rows:
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UserError(f"{printable(folder)} is a folder; a model of your own takes its batches from a function")
    files, _ = files_below(folder, is_image_name)
    if not files:
        raise UserError(f"{printable(folder)} holds no image files")
    if bad := find_unreadable(files):
        first, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(files)} images in {printable(folder)} cannot be read, {printable(first.name)} first "
            f"({reason}): move them away"
        )

    def batches() -> Iterator[Batch]:
        for start in range(0, len(files), batch_size):
            some = files[start : start + batch_size]
            images = preprocessing.normalize(torch.stack([preprocessing.read(path) for path in some]))
            yield Batch(images, np.array([path.relative_to(folder).as_posix() for path in some], dtype=object))

    return batches


def _array_rows(path: Path, model: MainModel, batch_size: int) -> Iterator[Batch]:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the array {printable(path)}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0 or len(array) == 0:
        raise UserError(f"{printable(path)} holds no array of rows")
    if array.dtype.kind not in "fiub":
        raise UserError(f"{printable(path)} holds {array.dtype}; inputs are numbers")
    preprocessing = model.preprocessing
    if preprocessing is not None and array.dtype != np.uint8:
        raise UserError(f"{printable(path)} holds {array.dtype}; images are uint8, 0 to 255")
    if preprocessing is not None and tuple(array.shape[1:]) != preprocessing.image_shape:
        raise UserError(f"{printable(path)} has shape {array.shape}; the model takes (n, *{preprocessing.image_shape})")
    for start in range(0, len(array), batch_size):
        part = torch.from_numpy(np.array(array[start : start + batch_size]))
        if preprocessing is not None:
            part = preprocessing.normalize(part)
        elif part.is_floating_point():
            part = part.float()
            if not torch.isfinite(part).all():
                raise UserError(
                    f"{printable(path)} holds NaN or infinite values in rows {start} to {start + len(part) - 1}"
                )
        yield Batch(part, torch.arange(start, start + len(part)))


def named_inputs(inputs: Sequence[str], model: MainModel) -> Iterator[tuple[list[str], Inputs]]:
    """What ``tenfold predict`` is given: image files, or tables for a run on tables; names and inputs."""
    if model.preprocessing is not None:
        for name, image in read_images(inputs, model.preprocessing):
            yield [name], model.preprocessing.normalize(image[None])
        return
    for rows, ids in chain.from_iterable(open_data(path, model)() for path in inputs):
        yield [str(number) for number in ids.tolist()], rows
