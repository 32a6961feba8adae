"""What the columns of a table mean: head, relation, tail, and a fourth that tells true rows from false ones."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.tables import Table, header_order

Triple = tuple[str, str, str]

Order = Literal["hrt", "htr", "rht"]
"""Which column holds the head, the relation, the tail."""

FourthColumn = Literal["refuse", "ignore", "truth"]


@dataclass(frozen=True)
class Rules:
    """What a reader says of tables beyond their format.

    Attributes:
        order: columns of tables without a header; told by the data where ``None``.
        header: whether the first row of CSV and TSV files names the columns; where ``None``, it does if it names a
            head, a relation and a tail, and a first row of which no cell occurs again is refused.
        fourth: what a fourth column means: ``refuse`` it (but for WN11's 1 and -1), ``ignore`` it, or ``truth``: rows
            with 1 are facts, those with 0 or -1 are left out.
    """

    order: Order | None = None
    header: bool | None = None
    fourth: FourthColumn = "refuse"


@dataclass
class TriplesRead:
    """Triples of a file.

    Attributes:
        triples: head, relation, tail.
        notes: what was left out, or is not certain.
    """

    triples: list[Triple]
    notes: list[str] = field(default_factory=list)


def choose_order(table: Table, declared: Order | None) -> tuple[tuple[int, int, int], list[str]]:
    """Places of head, relation and tail in a table's rows, and a note where the data hardly tell.

    Args:
        table: its header decides, if it has one that names them.
        declared: the order by its layout, or by its reader.

    Raises:
        UserError: the data contradict the declared order.
    """
    placed = header_order(table.header) if table.header is not None else None
    if placed is not None:
        return placed, []
    notes = []
    if declared is None:
        declared, clear = detect_order(table.rows)
        if clear < 1.5:
            notes.append(
                f"The columns of {table.path.name} are taken in the order {declared}; the data hardly tell: set "
                "--data.order to be sure."
            )
    else:
        _check_order(table, declared)
    return (declared.index("h"), declared.index("r"), declared.index("t")), notes


def _check_order(table: Table, declared: Order) -> None:
    guess, ratio = detect_order(table.rows)
    if guess != declared and ratio >= 2:
        distinct = [len({row[column] for row in table.rows}) for column in range(3)]
        raise UserError(
            f"{table.path}: the columns are not in the order {declared}: they have {distinct[0]:,}, {distinct[1]:,} "
            f"and {distinct[2]:,} distinct values, so the order must be {guess}; give it with --data.order {guess}"
        )


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


def to_triples(table: Table, places: tuple[int, int, int], fourth: FourthColumn = "refuse") -> TriplesRead:
    """Head, relation and tail of a table's rows.

    Args:
        table: the rows.
        places: of head, relation and tail.
        fourth: what a fourth column without a name means, see `Rules`.

    Raises:
        UserError: a cell is empty, or there is a fourth column that nobody explained.
    """
    h, r, t = places
    rows, notes = table.rows, []
    for place, row in enumerate(rows):
        for part, column in (("head", h), ("relation", r), ("tail", t)):
            if not row[column].strip():
                raise UserError(
                    f"{table.where(place)}: the {part} is empty; give the row all three ids, or take it out"
                )
    width = len(rows[0]) if rows else 3
    further = [column for column in range(width) if column not in places]
    if further and table.header is not None and fourth != "truth":
        names = ", ".join(table.header[column] for column in further)
        notes.append(f"Columns of {table.path.name} that are not read: {names}.")
    elif further:
        rows, notes = _by_truth(table, further, fourth)
    return TriplesRead([(row[h], row[r], row[t]) for row in rows], notes)


def _by_truth(table: Table, further: Sequence[int], fourth: FourthColumn) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows that count, by a fourth column."""
    name = table.path.name
    if fourth == "ignore":
        return table.rows, [f"{len(further)} further columns of {name} are not read."]
    values = {row[further[0]] for row in table.rows} if len(further) == 1 else set()
    # WN11, FB13 and their kin mark false triples by -1: no other use of 1 and -1 is known.
    marks = values and values <= {"1", "-1"}
    if fourth == "refuse" and not marks:
        some = ", ".join(sorted(values)[:3])
        raise UserError(
            f"{table.path} has {3 + len(further)} columns, and the fourth holds {some or 'something'}: say with "
            "--data.fourth_column whether it tells true rows (truth: 1 is kept, 0 and -1 are left out) or not (ignore)"
        )
    if not values or not values <= {"1", "0", "-1"}:
        wrong = next((n for n, row in enumerate(table.rows) if row[further[0]] not in ("1", "0", "-1")), 0)
        raise UserError(
            f"{table.where(wrong)}: the fourth column holds {table.rows[wrong][further[0]]!r}, not 1, 0 or -1"
        )
    kept = [row for row in table.rows if row[further[0]] == "1"]
    left = len(table.rows) - len(kept)
    return kept, [f"{left:,} rows of {name} are marked false and were left out."] if left else []


def check_ids(ids: Iterable[str], what: str) -> None:
    """Refuse ids that no line of a table can hold, and pairs of ids that are one thing written in two ways.

    Raises:
        UserError: an id holds a tab, a line break or another control character; or two ids differ in blanks at their
            ends alone, or as whole numbers and the same numbers with a fraction of 0.
    """
    first: dict[str, str] = {}
    for key in ids:
        if any(unicodedata.category(mark) == "Cc" for mark in key):
            raise UserError(f"the {what} id {key!r} holds a tab, a line break or another control character")
        plain = key.strip()
        other = first.setdefault(_WHOLE.sub(r"\1", plain), key)
        if other != key:
            how = "in blanks" if other.strip() == plain else "in a fraction of 0 (gaps make fractions of whole numbers)"
            raise UserError(f"the {what} ids {other!r} and {key!r} differ {how} alone, and would count as two")


_WHOLE = re.compile(r"^([-+]?\d+)\.0$")
