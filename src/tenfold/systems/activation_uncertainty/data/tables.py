"""Rows of CSV and Parquet files in, scores out; files of any length, a block at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError, require

_BLOCK_ROWS = 65_536


def read_table(path: str | Path) -> Iterator[Any]:
    """Record batches of a ``.csv`` or ``.parquet`` file.

    Raises:
        UserError: the file is missing, damaged, empty, or of another kind.
    """
    require("pyarrow", "tables")
    import pyarrow as arrow
    from pyarrow import csv, parquet

    path = Path(path)
    rows = 0
    try:
        if path.suffix == ".parquet":
            batches: Iterable[Any] = parquet.ParquetFile(path).iter_batches(batch_size=_BLOCK_ROWS)
        elif path.suffix in (".csv", ".gz"):
            batches = csv.open_csv(path)
        else:
            raise UserError(f"{path}: tables are .csv or .parquet files")
        for batch in batches:
            rows += len(batch)
            yield batch
    except (OSError, UnicodeDecodeError, arrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not rows:
        raise UserError(f"{path} holds no rows")


def column(batch: Any, name: str, path: str | Path, first: int = 0) -> np.ndarray:
    """A column as numbers.

    Args:
        batch: of ``read_table``.
        name: of the column.
        path: of the file, for messages.
        first: number of the batch's first row, for messages.

    Raises:
        UserError: there is no such column, it holds something else than numbers, or a value is missing or NaN.
    """
    if name not in batch.schema.names:
        raise UserError(f"{path} has no column {name!r}; it has: {', '.join(batch.schema.names)}")
    try:
        values = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: column {name!r} does not hold numbers: {error}") from error
    bad = ~np.isfinite(values)
    if bad.any():
        row = first + int(bad.argmax())
        raise UserError(f"{path}: column {name!r} is missing, NaN or infinite in row {row} (counted from 0)")
    return values


def feature_rows(
    path: str | Path, columns: Sequence[str] | None, id_column: str | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """``(features, ids)`` of a table: float32 ``(rows, columns)`` and int64 ``(rows,)``.

    Args:
        path: the file.
        columns: names, in the order of the network's inputs; all but the id where ``None``.
        id_column: whole numbers that name the rows; their position where ``None``.
    """
    given = 0
    for batch in read_table(path):
        names = columns or [name for name in batch.schema.names if name != id_column]
        features = np.stack([column(batch, name, path, given) for name in names], axis=1)
        ids = np.arange(given, given + len(batch)) if id_column is None else column(batch, id_column, path, given)
        given += len(batch)
        yield torch.from_numpy(features.astype(np.float32)), torch.from_numpy(ids.astype(np.int64))


def write_scores(path: str | Path, parts: Iterable[dict[str, Any]]) -> int:
    """Write score columns as ``.csv`` or ``.parquet``, whole or not at all; gives the number of rows.

    Args:
        path: the file.
        parts: columns of the same names, a block at a time.

    Raises:
        UserError: the file is of another kind, or cannot be written.
    """
    require("pyarrow", "tables")
    import pyarrow as arrow
    from pyarrow import csv, parquet

    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: scores are written as .csv or .parquet")
    temporary = path.with_name(f".{path.name}.tmp")
    writer: Any = None
    rows = 0
    try:
        for part in parts:
            table = arrow.table(part)
            if writer is None:
                make = parquet.ParquetWriter if path.suffix == ".parquet" else csv.CSVWriter
                writer = make(str(temporary), table.schema)
            writer.write_table(table)
            rows += len(table)
        if writer is not None:
            writer.close()
            writer = None
            temporary.replace(path)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        if writer is not None:
            writer.close()
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return rows
