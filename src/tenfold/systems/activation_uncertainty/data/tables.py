"""Rows of CSV and Parquet files in, scores out; files of any length, a block at a time.

A CSV file has no types: columns of numbers are read as numbers because a network takes them, wherever in the file a
value stands, and ids are whole numbers only where all of them are. A Parquet file says what its columns are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError, require
from tenfold.files import atomic_path, first_line, printable
from tenfold.systems.activation_uncertainty.network.batches import Batch, Ids, check_ids

_BLOCK_ROWS = 65_536
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
"""Whole numbers that are written in one way only."""


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table are read, and as what.

    Attributes:
        inputs: columns of numbers, in the order of the network's inputs; all but the id where ``None``.
        id: column that names the rows, by whole numbers or texts; they are counted from 0 where ``None``.
    """

    inputs: Sequence[str] | None = None
    id: str | None = None


def is_table(path: str | Path) -> bool:
    """Whether a file is one of those that ``read_table`` reads, by its name."""
    return Path(path).name.endswith((".csv", ".csv.gz", ".parquet"))


def read_table(path: str | Path, columns: TableColumns) -> Iterator[Any]:
    """Record batches with the columns that are read, those of ``inputs`` as numbers.

    Raises:
        UserError: the file is missing, damaged, empty or of another kind, or lacks a column.
    """
    require("pyarrow", "tables")
    import pyarrow as arrow
    from pyarrow import parquet

    path = Path(path)
    rows = 0
    try:
        if path.suffix == ".parquet":
            file = parquet.ParquetFile(path)
            names = _chosen(file.schema_arrow.names, columns, path)
            batches: Iterable[Any] = file.iter_batches(batch_size=_BLOCK_ROWS, columns=names)
        elif is_table(path):
            batches = _csv_batches(path, columns)
        else:
            raise UserError(f"{path}: tables are .csv, .csv.gz or .parquet files")
        for batch in batches:
            rows += len(batch)
            yield batch
    except (OSError, UnicodeDecodeError, EOFError, arrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not rows:
        raise UserError(f"{path} holds no rows")


def _chosen(known: Sequence[str], columns: TableColumns, path: Path) -> list[str]:
    """The columns to read; they are there, and once."""
    inputs = [name for name in known if name != columns.id] if columns.inputs is None else list(columns.inputs)
    names = list(dict.fromkeys([*inputs, *([columns.id] if columns.id is not None else [])]))
    for name in names:
        if name not in known:
            raise UserError(f"{path} has no column {name!r}; it has: {', '.join(map(str, known))}")
        if list(known).count(name) > 1:
            raise UserError(f"{path} has the column {name!r} {list(known).count(name)} times; rename them")
    return names


def _csv_batches(path: Path, columns: TableColumns) -> Iterable[Any]:
    """Record batches of a CSV file, its types declared and not taken from its first block."""
    import pyarrow as arrow
    from pyarrow import csv

    text = csv.ConvertOptions(default_column_type=arrow.string(), strings_can_be_null=False)
    with csv.open_csv(path, convert_options=text) as reader:
        names = _chosen(reader.schema.names, columns, path)
    types = dict.fromkeys(names, arrow.float64())
    if columns.id is not None:
        ids = csv.ConvertOptions(
            column_types={columns.id: arrow.string()}, include_columns=[columns.id], strings_can_be_null=False
        )
        with csv.open_csv(path, convert_options=ids) as reader:
            whole = all(_is_whole(batch.column(0)) for batch in reader)
        types[columns.id] = arrow.int64() if whole else arrow.string()
    options = csv.ConvertOptions(
        column_types=types, include_columns=names, strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    return csv.open_csv(path, convert_options=options)


def _is_whole(texts: Any) -> bool:
    """Whether all texts are whole numbers that fit 64 bits and come back as they are written."""
    import pyarrow as arrow
    from pyarrow import compute

    if compute.all(compute.match_substring_regex(texts, _WHOLE)).as_py() is False:
        return False
    try:
        texts.cast(arrow.int64())
    except arrow.ArrowInvalid:  # too large
        return False
    return True


def numbers_of(batch: Any, name: str, path: str | Path, first: int = 0) -> np.ndarray:
    """A column as float64 numbers.

    Args:
        batch: of ``read_table``.
        name: of the column.
        path: of the file, for messages.
        first: number of the batch's first row, for messages.

    Raises:
        UserError: it holds something else than numbers, or a value is missing or NaN.
    """
    import pyarrow as arrow

    column = batch.column(name)
    kind = column.type
    if not (
        arrow.types.is_integer(kind)
        or arrow.types.is_floating(kind)
        or arrow.types.is_boolean(kind)
        or arrow.types.is_decimal(kind)
        or arrow.types.is_null(kind)
    ):
        raise UserError(f"{path}: column {name!r} does not hold numbers: it holds {kind}")
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{path}: column {name!r} is missing, NaN or infinite in row {row} (counted from 0)")
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        row = first + int(bad.argmax())
        raise UserError(f"{path}: column {name!r} is missing, NaN or infinite in row {row} (counted from 0)")
    return values


def ids_of(batch: Any, columns: TableColumns, path: str | Path, first: int = 0) -> Ids:
    """``(rows,)`` ids: whole numbers, or texts; never by way of floating-point numbers.

    Args:
        batch: of ``read_table``.
        columns: whose ``id`` names the column.
        path: of the file, for messages.
        first: number of the batch's first row.

    Raises:
        UserError: an id is missing, or the column holds neither whole numbers nor texts.
    """
    import pyarrow as arrow

    if columns.id is None:
        return torch.arange(first, first + len(batch))
    column = batch.column(columns.id)
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{path}: the id in column {columns.id!r} is missing in row {row} (counted from 0)")
    if arrow.types.is_integer(column.type):
        return check_ids(column.to_numpy(zero_copy_only=False), len(batch))
    if arrow.types.is_floating(column.type) or arrow.types.is_nested(column.type) or arrow.types.is_null(column.type):
        raise UserError(
            f"{path}: column {columns.id!r} holds {column.type}, in which two rows may look alike; ids are whole "
            "numbers or texts"
        )
    try:
        return check_ids(np.array(column.cast(arrow.string()).to_pylist(), dtype=object), len(batch))
    except arrow.ArrowException as error:
        raise UserError(f"{path}: column {columns.id!r} holds {column.type}; ids are whole numbers or texts") from error


def feature_rows(path: str | Path, columns: TableColumns) -> Iterator[Batch]:
    """Rows of a table: float32 ``(rows, columns)`` with their ids.

    Args:
        path: the file.
        columns: which of them.
    """
    given = 0
    for batch in read_table(path, columns):
        names = columns.inputs or [name for name in batch.schema.names if name != columns.id]
        if not names:
            raise UserError(f"{path} has no column beside the id")
        features = np.stack([numbers_of(batch, name, path, given) for name in names], axis=1)
        yield Batch(torch.from_numpy(features.astype(np.float32)), ids_of(batch, columns, path, given))
        given += len(batch)


def named_rows(
    path: str | Path, example: Mapping[str, Any], sizes: Mapping[str, Any], id_column: str | None
) -> Iterator[Batch]:
    """Rows of a table as the columns that a network takes: scalars by name, vectors as ``name_0, name_1 ...``.

    Args:
        path: the file.
        example: ``shape`` of a row and ``type`` of each input.
        sizes: for whole numbers, how many values each input has; for vectors a number for each place.
        id_column: that names the rows.
    """
    named = {
        name: [f"{name}_{n}" for n in range(fact["shape"][0])] if fact["shape"] else [name]
        for name, fact in example.items()
    }
    columns = TableColumns([column for group in named.values() for column in group], id_column)
    given = 0
    for batch in read_table(path, columns):
        inputs: dict[str, Tensor] = {}
        for name, fact in example.items():
            values = np.stack([numbers_of(batch, column, path, given) for column in named[name]], axis=1)
            if "int" in fact["type"]:
                _check_sizes(values, name, sizes.get(name), path, given)
            tensor = torch.from_numpy(values).to(getattr(torch, fact["type"]))
            inputs[name] = tensor if fact["shape"] else tensor[:, 0]
        yield Batch(inputs, ids_of(batch, columns, path, given))
        given += len(batch)


def _check_sizes(values: np.ndarray, name: str, sizes: Any, path: str | Path, first: int) -> None:
    if sizes is not None and np.size(sizes) not in (1, values.shape[1]):
        raise UserError(
            f"the model's manifest names {np.size(sizes)} sizes for the {values.shape[1]} places of {name!r}"
        )
    limits = np.broadcast_to(2**53 if sizes is None else np.array(sizes), values.shape[1:])
    bad = (values != np.rint(values)) | (values < 0) | (values >= limits)
    if bad.any():
        row, place = np.argwhere(bad)[0]
        column = name if values.shape[1] == 1 else f"{name}_{place}"
        raise UserError(
            f"{path}: column {column!r} holds {values[row, place]:g} in row {first + row} (counted from 0); the model "
            f"knows the whole numbers 0 to {limits[place] - 1}"
        )


def check_scores_file(path: str | Path) -> None:
    """Refuse a name of another kind of file.

    Raises:
        UserError: it ends neither in ``.csv`` nor in ``.parquet``.
    """
    if Path(path).suffix not in (".csv", ".parquet"):
        raise UserError(f"{printable(path)}: scores are written as .csv or .parquet")


def write_scores(path: str | Path, parts: Iterable[dict[str, Any]]) -> int:
    """Write score columns as ``.csv`` or ``.parquet``, whole or not at all; gives the number of rows.

    Args:
        path: the file; not written where there are no rows.
        parts: columns of the same names, a block at a time.

    Raises:
        UserError: the file is of another kind, or cannot be written.
    """
    require("pyarrow", "tables")
    import pyarrow as arrow
    from pyarrow import csv, parquet

    check_scores_file(path)
    make = parquet.ParquetWriter if Path(path).suffix == ".parquet" else csv.CSVWriter
    rows = 0
    tables = (arrow.table(part) for part in parts)
    first = next(tables, None)
    if first is None:
        return 0
    try:
        with atomic_path(path) as temporary, make(str(temporary), first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
                rows += len(table)
    except arrow.ArrowException as error:
        raise UserError(f"cannot write {printable(path)}: {first_line(error)}") from error
    return rows
