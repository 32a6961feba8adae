"""Answer queries with a run's encoder."""

import json
from pathlib import Path
from typing import Literal

from tenfold.errors import UserError
from tenfold.files import printable, read_text
from tenfold.systems.graph_fusion.serve.student import Student, as_rows


def predict(
    run: str,
    inputs: list[str],
    *,
    k: int = 10,
    exclude_known: bool = True,
    new_entity: bool = False,
    factory: str | None = None,
) -> str:
    """Answer queries "entity, relation" (or "?, relation, entity"): one JSON line per query.

    Args:
        run: folder of the run, or of one of its students.
        inputs: queries: ENTITY TAB RELATION, or ? TAB RELATION TAB ENTITY for heads; a comma may stand for the tab;
            or files with one query per line.
        k: answers per query.
        exclude_known: leave out answers that the graph holds.
        new_entity: the entity is a text and not in the graph (text student).
        factory: of an encoder of your own, see Student.load.
    """
    student = Student.load(run, factory)
    lines = []
    for text in _queries(inputs):
        entity, relation, direction = _parse_query(text)
        if new_entity:
            answers = student.predict_text(entity, relation, direction=direction, k=k)
        else:
            answers = student.predict(entity, relation, direction=direction, k=k, exclude_known=exclude_known)
        lines.append({"query": text, "direction": direction, "answers": as_rows(answers)})
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _queries(inputs: list[str]) -> list[str]:
    found = []
    for name in inputs:
        if _is_file(name):
            lines = [line.rstrip("\r") for line in read_text(name).split("\n") if line.strip()]
            if not lines:
                raise UserError(f"{printable(name)} holds no query: write one a line")
            found += lines
        else:
            found.append(name)
    return found


def _is_file(name: str) -> bool:
    """Whether a text names a file; most queries could not be names of any, being too long or of odd characters."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _parse_query(text: str) -> tuple[str, str, Literal["tail", "head"]]:
    parts = [part.strip() for part in text.split("\t" if "\t" in text else ",")]
    if len(parts) == 3 and parts[0] == "?":
        return parts[2], parts[1], "head"
    if len(parts) == 3 and parts[2] == "?":
        parts = parts[:2]
    if len(parts) != 2 or not all(parts):
        raise UserError(
            f"{printable(text)!r} is no query: write ENTITY, RELATION for tails or ?, RELATION, ENTITY for heads, with "
            "tabs in place of commas where names hold commas"
        )
    return parts[0], parts[1], "tail"
