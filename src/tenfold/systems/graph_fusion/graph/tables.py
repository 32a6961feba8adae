"""Triples and texts in files: gzipped or not, any line ends, strict UTF-8, ids kept as text.

What a table means follows from its format. Parquet has named columns. CSV (RFC 4180) and TSV may have a header, which
is one where it names the columns; blanks belong to a cell. Nothing is stripped, filled in or left out unsaid: an error
names the row, and what was left out becomes a note with its number.
"""

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import UserError, require
from tenfold.files import regular

Place = Path | zipfile.Path
"""A folder or file, on disk or inside a zip archive."""


_MOST_UNPACKED = 100
"""How many times its size a compressed file may unpack to: text shrinks to a tenth, bombs to a thousandth."""


_NAMES = {
    "h": ("head", "subject", "head_id", "source", "from", "h", "s"),
    "r": ("relation", "predicate", "rel", "edge", "r", "p", "type", "label"),
    "t": ("tail", "object", "tail_id", "target", "to", "t", "o"),
}
"""Names that a header gives its columns, the clearest first."""


@dataclass(frozen=True)
class Table:
    """Rows of a file as text.

    Attributes:
        path: the file.
        rows: cells of each row; the header is not among them.
        lines: line of each row in the file, from 1; of Parquet the row's number.
        header: names of the columns where the file gives them.
    """

    path: Place
    rows: list[tuple[str, ...]]
    lines: Sequence[int]
    header: tuple[str, ...] | None = None

    def where(self, place: int) -> str:
        """The file and line of a row, for messages."""
        return f"{self.path} line {self.lines[place]}"


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
        content = _read_bytes(path)
        if content[:2] == b"\x1f\x8b":
            most = max(2**24, _MOST_UNPACKED * len(content))
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(most + 1)
            if len(content) > most:
                raise UserError(f"{path} unpacks to more than {_MOST_UNPACKED} times its size: unpack it yourself")
    except (OSError, EOFError, zlib.error, KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise UserError(f"cannot read {path}: {error}; it is missing, cut short or damaged") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text: line {line} holds the byte 0x{content[error.start]:02x}") from error


def _read_bytes(path: Place) -> bytes:
    if isinstance(path, zipfile.Path):
        entry = path.root.getinfo(path.at)
        if entry.file_size > max(2**24, _MOST_UNPACKED * entry.compress_size):
            raise UserError(f"{path} unpacks to more than {_MOST_UNPACKED} times its size: unpack it yourself")
        return path.read_bytes()
    return regular(path).read_bytes()


def numbered_lines(path: Place) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without their ends, LF or CRLF; blank ones left out.

    Other separators of lines are ordinary text.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def read_lines(path: Place) -> list[str]:
    """Lines that are not blank, see `numbered_lines`."""
    return [line for _, line in numbered_lines(path)]


def read_json_file(path: Place) -> Any:
    """A JSON file, gzipped or not."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def read_table(path: Place, header: bool | None = None) -> Table:
    """Rows of a TSV, CSV or Parquet file as text: ids keep their leading zeros, ``NA`` is a name like any other.

    Args:
        path: the file; ``.csv`` and ``.parquet`` are known by their names, others have tabs (or single blanks).
        header: whether the first row names the columns; see `Rules`. Parquet always names them.

    Raises:
        UserError: it is empty, its rows have not one length of three or more, or a cell is empty, null or a fraction.
    """
    name = str(path).removesuffix(".gz")
    if name.endswith(".parquet"):
        table = _read_parquet(path)
    elif name.endswith(".csv"):
        table = _with_header(_read_csv(path), header)
    else:
        table = _with_header(_read_tabs(path), header)
    if not table.rows:
        raise UserError(f"{path} is empty: it must hold triples, one a line")
    return table


def _read_csv(path: Place) -> Table:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if row:
                rows.append(tuple(row))
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV: {error}") from error
    return _even(Table(path, rows, lines))


def _read_tabs(path: Place) -> Table:
    found = list(numbered_lines(path))
    # Freebase's files use tabs, a few others single blanks.
    separator = "\t" if not found or "\t" in found[0][1] else None
    rows = [tuple(line.split(separator)) for _, line in found]
    if rows and separator is None and len(rows[0]) != 3:
        for mark, name in ((",", "commas"), (";", "semicolons"), ("|", "bars")):
            if found[0][1].count(mark) >= 2:
                say = (
                    "name the file .csv" if mark == "," else "separate them by tabs, or by commas in a file named .csv"
                )
                raise UserError(f"{path} separates its columns by {name}, where tabs are meant: {say}")
    return _even(Table(path, rows, [number for number, _ in found]))


def _even(table: Table) -> Table:
    """The table, if all rows have as many columns as the first, and at least three."""
    width = len(table.rows[0]) if table.rows else 3
    for place, row in enumerate(table.rows):
        if len(row) != width or width < 3:
            raise UserError(
                f"{table.where(place)} has {len(row)} columns, not {max(width, 3)} (head, relation, tail): it is "
                "damaged or cut short"
            )
    return table


def _with_header(table: Table, header: bool | None) -> Table:
    """The first row as header, if it is one."""
    if not table.rows:
        return table
    first = table.rows[0]
    named = header_order(first) is not None
    if header is None and not named and len(table.rows) > 2:
        own = set(first)
        if not any(cell in own for row in table.rows[1:] for cell in row):
            raise UserError(
                f"{table.where(0)} ({', '.join(first)}) may be a header or a triple, none of its cells occurs again: "
                "say --data.header true or false (true needs columns named head, relation and tail)"
            )
    if header is False or (header is None and not named):
        return table
    if not named:
        raise UserError(f"{table.where(0)} names no head, relation and tail: it has {', '.join(first)}")
    return Table(table.path, table.rows[1:], table.lines[1:], first)


def _read_parquet(path: Place) -> Table:
    """Columns by name. Whole numbers become their digits; fractions are no ids, for they cannot hold every id."""
    arrow, parquet = require("pyarrow", "graphs"), require("pyarrow.parquet", "graphs")
    try:
        table = parquet.read_table(io.BytesIO(_read_bytes(path)))
        places = header_order(table.column_names)
        every = places is None or len(table.column_names) == 4  # a fourth column may tell which rows are true
        wanted = range(len(table.column_names)) if every or places is None else sorted(places)
        columns: dict[int, list[str]] = {}
        for place in wanted:
            name, column = table.column_names[place], table.column(place)
            kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
            if places is not None and place not in places and not arrow.types.is_integer(kind):
                continue
            if arrow.types.is_floating(kind) or arrow.types.is_decimal(kind):
                raise UserError(
                    f"{path}: the column {name!r} holds numbers with fractions ({kind}), which cannot be ids: write "
                    "ids as whole numbers or text (whole numbers with gaps become fractions in pandas: use its Int64)"
                )
            text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or "string_view" in str(kind)
            if not text and not arrow.types.is_integer(kind):
                raise UserError(f"{path}: the column {name!r} holds {kind}, which cannot be ids: write them as text")
            columns[place] = column.cast(arrow.string()).to_pylist()
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's errors are of these
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    for place, values in columns.items():
        if places is not None and place not in places:
            columns[place] = ["" if value is None else value for value in values]
            continue
        empty = next((number for number, value in enumerate(values, start=1) if value is None), None)
        if empty is not None:
            raise UserError(
                f"{path} row {empty}: the column {table.column_names[place]!r} is null; give the row all three ids, or "
                "take it out"
            )
    if len(columns) < 3:
        raise UserError(f"{path} has {len(columns)} columns, not 3 (head, relation, tail)")
    # Cells of columns that nobody asked for are not read: a place holder keeps the others where the header has them.
    unread = [""] * table.num_rows
    rows = list(zip(*(columns.get(place, unread) for place in range(len(table.column_names))), strict=True))
    return Table(path, rows, range(1, len(rows) + 1), tuple(table.column_names))


def read_pairs(path: Place) -> Iterator[tuple[int, str, str]]:
    """Line, id and text of each ``id TAB text``; further tabs belong to the text.

    Raises:
        UserError: a line has no tab, or no id before it.
    """
    for number, line in numbered_lines(path):
        key, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{path} line {number} has no tab: it must be an id, a tab and a text")
        if not key.strip():
            raise UserError(f"{path} line {number} has no id before its tab")
        yield number, key, text


def header_order(row: Sequence[str]) -> tuple[int, int, int] | None:
    """Places of head, relation and tail where a first row names its columns."""
    lower = [cell.strip().lower() for cell in row]
    places = [next((lower.index(name) for name in _NAMES[part] if name in lower), -1) for part in "hrt"]
    return (places[0], places[1], places[2]) if min(places) >= 0 and len(set(places)) == 3 else None
