"""Criteo click logs, read as a stream: the Kaggle file, the terabyte's days, and the re-issue Criteo_x1.

Thirteen counts (missing, zero and negative are different things) and 26 categories. A row becomes 26 numbers and 26
integers: of each count ``floor(ln(v)^2)`` above 2 and itself below, with a flag for missing; of each category its place
in a vocabulary of what occurs often enough, or a hash of a fixed size.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.errors import UserError, require

COUNTS = tuple(f"I{n}" for n in range(1, 14))
CATEGORIES = tuple(f"C{n}" for n in range(1, 27))
_BLOCK = 32 << 20


@dataclass(frozen=True)
class Clicks:
    """Click-log rows in memory.

    Attributes:
        counts: ``(n, 26)`` float32: 13 transformed counts, 0 where missing, then 13 flags for missing.
        categories: ``(n, 26)`` int64; 0 is everything rare, unknown or missing.
        label: ``(n,)`` float32, 1 for a click; ``None`` for rows without label.
        sizes: number of values of each category.
    """

    counts: Tensor
    categories: Tensor
    label: Tensor | None
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.counts)


class CriteoEncoder:
    """Categories to integers.

    Args:
        minimum: occurrences below which a value is rare.
        hashed: hash values into this many places instead of counting them; nothing has to be read first.
    """

    def __init__(self, *, minimum: int = 10, hashed: int | None = None) -> None:
        if hashed is not None and hashed < 2:
            raise UserError(f"categories are hashed into at least 2 places; got {hashed}")
        self.minimum, self.hashed = minimum, hashed
        self.vocabulary: list[dict[str, int]] = [{} for _ in CATEGORIES]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each category, 0 included."""
        return tuple(self.hashed or len(values) + 1 for values in self.vocabulary)

    def fit(self, path: str | Path, *, rows: int | None = None) -> "CriteoEncoder":
        """Count the values of a file, in one pass over it; nothing to do where they are hashed."""
        if self.hashed is None:
            counters: list[Counter[str]] = [Counter() for _ in CATEGORIES]
            for batch in stream_criteo(path, rows=rows):
                for counter, name in zip(counters, CATEGORIES, strict=True):
                    counted = batch.column(name).value_counts()
                    counter.update(
                        dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
                    )
            self.vocabulary = [
                {
                    value: n + 1
                    for n, value in enumerate(sorted(v for v, k in counter.items() if v and k >= self.minimum))
                }
                for counter in counters
            ]
        return self

    def encode(self, batch: Any) -> Clicks:
        """A batch of ``stream_criteo`` as tensors."""
        counts = np.stack([_transformed(batch.column(name)) for name in COUNTS], axis=1)
        missing = np.isnan(counts)
        categories = np.stack([self._places(batch.column(name), n) for n, name in enumerate(CATEGORIES)], axis=1)
        label = None
        if "label" in batch.schema.names:
            label = torch.from_numpy(batch.column("label").to_numpy(zero_copy_only=False).astype(np.float32))
        return Clicks(
            torch.from_numpy(np.concatenate([np.nan_to_num(counts), missing], axis=1).astype(np.float32)),
            torch.from_numpy(categories),
            label,
            self.sizes,
        )

    def _places(self, column: Any, n: int) -> NDArray[np.int64]:
        """Only the different values of a column are looked up."""
        encoded = column.dictionary_encode()
        values = encoded.dictionary.to_pylist()
        if self.hashed is None:
            own = self.vocabulary[n]
            places = [own.get(value, 0) for value in values]
        else:
            places = [1 + zlib.crc32(f"{n}:{value}".encode()) % (self.hashed - 1) if value else 0 for value in values]
        return np.array(places, dtype=np.int64)[encoded.indices.to_numpy(zero_copy_only=False)]


def _places(values: set[str]) -> dict[str, int]:
    return {value: n + 1 for n, value in enumerate(sorted(values))}


def _transformed(column: Any) -> NDArray[np.float64]:
    values = column.to_numpy(zero_copy_only=False).astype(np.float64)  # missing becomes NaN
    large = values > 2
    values[large] = np.floor(np.square(np.log(values[large])))
    return values


def stream_criteo(path: str | Path, *, rows: int | None = None) -> Iterator[Any]:
    """Record batches of a file with columns ``label`` (where there is one), I1..I13, C1..C26.

    Args:
        path: ``train.txt``, ``test.txt``, ``day_N.gz`` (tabs, no header) or ``*.csv`` with a header (Criteo_x1).
        rows: stop after so many.

    Raises:
        UserError: the file is missing, empty or cut short, or a row has other fields.
    """
    require("pyarrow", "tables")
    import pyarrow as arrow
    from pyarrow import csv

    path = Path(path)
    text = [*CATEGORIES]
    header = path.name.endswith((".csv", ".csv.gz"))
    names = None if header else ["label", *COUNTS, *CATEGORIES]
    if not header and _columns(path) == len(COUNTS) + len(CATEGORIES):
        names = [*COUNTS, *CATEGORIES]
    kind = arrow.float64() if header else arrow.int64()
    types = dict.fromkeys(COUNTS, kind) | {name: arrow.string() for name in text} | {"label": arrow.float64()}
    given = 0
    try:
        reader = csv.open_csv(
            path,
            read_options=csv.ReadOptions(column_names=names, block_size=_BLOCK),
            parse_options=csv.ParseOptions(delimiter="," if header else "\t", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
        if lacking := [name for name in (*COUNTS, *CATEGORIES) if name not in reader.schema.names]:
            raise UserError(f"{path} has no column {lacking[0]}; it needs label, I1..I13, C1..C26")
        for batch in reader:
            wanted = batch if rows is None else batch.slice(0, rows - given)
            _check_labels(wanted, path, given)
            given += len(wanted)
            if len(wanted):
                yield wanted
            if rows is not None and given >= rows:
                break
    except (OSError, EOFError, arrow.ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not given:
        raise UserError(f"{path} holds no rows")


def _check_labels(batch: Any, path: Path, before: int) -> None:
    if "label" not in batch.schema.names:
        return
    labels = batch.column("label").to_numpy(zero_copy_only=False)
    bad = ~((labels == 0) | (labels == 1))
    if bad.any():
        raise UserError(
            f"{path}: row {before + int(bad.argmax())} (counted from 0) has a label that is neither 0 nor 1"
        )


def _columns(path: Path) -> int:
    """Fields of the first line."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.readline().count(b"\t") + 1
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def load_criteo(path: str | Path, encoder: CriteoEncoder, *, rows: int | None = None) -> Clicks:
    """Read rows into memory, 310 bytes each.

    Args:
        path: see ``stream_criteo``.
        encoder: fitted on training rows.
        rows: at most so many.
    """
    parts = [encoder.encode(batch) for batch in stream_criteo(path, rows=rows)]
    labels = [part.label for part in parts if part.label is not None]
    return Clicks(
        torch.cat([part.counts for part in parts]),
        torch.cat([part.categories for part in parts]),
        torch.cat(labels) if labels else None,
        encoder.sizes,
    )
