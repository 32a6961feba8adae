"""Lines, triples and column orders of graph files: gzipped or not, any line ends, strict UTF-8, ids kept as text."""

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError, require

Place = Path | zipfile.Path
"""A folder or file, on disk or inside a zip archive."""

Triple = tuple[str, str, str]
Order = Literal["hrt", "htr", "rht"]
"""Which column holds the head, the relation, the tail."""

_HEADERS = {
    "h": {"head", "subject", "h", "source", "from", "head_id"},
    "r": {"relation", "predicate", "r", "label", "edge", "type", "rel"},
    "t": {"tail", "object", "t", "target", "to", "tail_id"},
}


def open_place(path: str | Path) -> Place:
    """A folder, a file, or the inside of a zip archive.

    Raises:
        UserError: it does not exist, or the archive is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no graph at {path}")
    if path.suffix == ".zip":
        try:
            inside = zipfile.Path(path)
            inner = list(inside.iterdir())
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot read the archive {path}: {error}") from error
        return inner[0] if len(inner) == 1 and inner[0].is_dir() else inside
    return path


def find_file(folder: Place, *names: str) -> Place | None:
    """The first of the named files that is there, itself or with ``.gz``."""
    for name in names:
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None


def read_text(path: Place) -> str:
    """A text file, unzipped, without a byte order mark.

    Raises:
        UserError: it is missing, cut short, or not UTF-8; the message names the line.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, KeyError) as error:
        raise UserError(f"cannot read {path}: {error}; it is missing, cut short or damaged") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x}") from error


def read_lines(path: Place) -> list[str]:
    """Lines without their ends, LF or CRLF; empty ones left out. Other separators of lines are ordinary text."""
    return [line for line in (line.removesuffix("\r") for line in read_text(path).split("\n")) if line.strip()]


def read_json_file(path: Place) -> Any:
    """A JSON file, gzipped or not."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def read_columns(path: Place) -> list[tuple[str, ...]]:
    """Rows of a TSV, CSV or Parquet file as text: ids keep their leading zeros, ``NA`` is a name like any other.

    Raises:
        UserError: it is empty, or its rows have not one length of at least three.
    """
    name = str(path).removesuffix(".gz")
    if name.endswith(".parquet"):
        rows = _parquet_rows(path)
    elif name.endswith(".csv"):
        rows = [tuple(row) for row in csv.reader(io.StringIO(read_text(path))) if row]
    else:
        lines = read_lines(path)
        # Freebase's files use tabs, a few others single spaces.
        separator = "\t" if not lines or "\t" in lines[0] else None
        rows = [tuple(line.split(separator)) for line in lines]
    if not rows:
        raise UserError(f"{path} is empty: it must hold triples, one a line")
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != width or not 3 <= width <= 4:
            raise UserError(
                f"{path} line {number} has {len(row)} columns, not 3 (head, relation, tail): it is damaged or cut short"
            )
    return rows


def _parquet_rows(path: Place) -> list[tuple[str, ...]]:
    parquet = require("pyarrow.parquet", "graphs")
    try:
        table = parquet.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    columns = [[str(value) for value in table.column(name).to_pylist()] for name in table.column_names]
    return [tuple(table.column_names), *zip(*columns, strict=True)]


def header_order(row: Sequence[str]) -> tuple[int, int, int] | None:
    """Places of head, relation and tail where a first row names its columns."""
    lower = [cell.strip().lower() for cell in row]
    places = [next((n for n, cell in enumerate(lower) if cell in _HEADERS[part]), -1) for part in "hrt"]
    return (places[0], places[1], places[2]) if min(places) >= 0 and len(set(places)) == 3 else None


def detect_order(rows: Sequence[Sequence[str]]) -> tuple[Order, float]:
    """Column order from the data: the relation's column has values of its own, and few of them.

    Heads and tails share values where entities occur at both ends; where no two columns do, the column with the fewest
    distinct values holds the relation.

    Args:
        rows: rows of at least three columns.

    Returns:
        the order, and how clear it is: how many times more values the two entity columns share than any other two, or
        how many times fewer distinct values the relation's column has; below about 1.5 it is a guess.
    """
    orders: dict[int, Order] = {1: "hrt", 2: "htr", 0: "rht"}
    values = [{row[column] for row in rows} for column in range(3)]
    shared = {relation: len(values[relation - 1] & values[relation - 2]) for relation in (1, 2, 0)}
    relation = max(shared, key=lambda column: shared[column])  # ties: head, relation, tail
    others = max(shared[column] for column in shared if column != relation)
    if shared[relation] >= 2 and shared[relation] >= 1.5 * others:
        return orders[relation], shared[relation] / max(others, 1)
    relation = min((1, 2, 0), key=lambda column: len(values[column]))
    return orders[relation], sorted(map(len, values))[1] / max(len(values[relation]), 1)


def to_triples(
    rows: Sequence[Sequence[str]], order: Order | tuple[int, int, int], *, labelled: bool = True
) -> list[Triple]:
    """Head, relation, tail of rows in any order; rows with a fourth column of -1 are false and left out."""
    places = tuple(order.index(part) for part in "hrt") if isinstance(order, str) else order
    h, r, t = places
    keep: Iterable[Sequence[str]] = rows
    if labelled and rows and len(rows[0]) == 4 and {row[3] for row in rows} <= {"1", "-1", "0"}:
        keep = (row for row in rows if row[3] == "1")
    return [(row[h], row[r], row[t]) for row in keep]


def check_order(rows: Sequence[Sequence[str]], declared: Order, path: Place) -> None:
    """Refuse a declared order that the data contradict.

    Raises:
        UserError: another column has far fewer distinct values than the one declared to hold the relation.
    """
    guess, ratio = detect_order(rows)
    if guess != declared and ratio >= 2:
        distinct = [len({row[column] for row in rows}) for column in range(3)]
        raise UserError(
            f"{path}: the columns are not in the order {declared}: they have {distinct[0]:,}, {distinct[1]:,} and "
            f"{distinct[2]:,} distinct values, so the order must be {guess}; give it with --data.order {guess}"
        )


def read_pairs(path: Place) -> Iterator[tuple[str, str]]:
    """``id TAB text`` of each line; further tabs belong to the text."""
    for number, line in enumerate(read_lines(path), start=1):
        key, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{path} line {number} has no tab: it must be an id, a tab and a text")
        yield key, text
