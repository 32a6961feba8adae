"""Rank a split again with a run's encoder."""

import json
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import read_json, write_atomically
from tenfold.models.folder import load_manifest
from tenfold.systems.graph_fusion.ranking.ranks import evaluate_encoder
from tenfold.systems.graph_fusion.ranking.summaries import summarise_groups
from tenfold.systems.graph_fusion.serve.student import Student

_COUNTER = "test-evaluations.json"


def evaluate(
    run: str, *, split: Literal["valid", "test"] = "valid", again: bool = False, factory: str | None = None
) -> dict[str, Any]:
    """Rank a split again with a run's encoder: all groups, both directions, ties realistic.

    Args:
        run: folder of the run, or of one of its students.
        split: the test split was ranked by the run itself, once; it is not ranked again unasked.
        again: rank the test split all the same; the folder keeps count.
        factory: of an encoder of your own, see Student.load.
    """
    student = Student.load(run, factory)
    if split == "test":
        counter = Path(run) / _COUNTER
        times = _times(counter)
        if not again:
            raise UserError(
                f"the test split of {run} was already evaluated ({times} time{'s'[: times > 1]}): choices made after "
                "another look would be tuned to it; use --split valid, or insist with --again true"
            )
        write_atomically(counter, json.dumps({"times": times + 1}))
    groups = summarise_groups(evaluate_encoder(student.scorer, student.graph, split), student.graph)
    rounded = {name: {k: round(v, 6) for k, v in numbers.items()} for name, numbers in groups.items()}
    return {"split": split, "side": load_manifest(run).extra.get("side"), **rounded}


def _times(counter: Path) -> int:
    """How often the test split was ranked: once by the run itself."""
    if not counter.exists():
        return 1
    found = read_json(counter)
    times = found.get("times") if isinstance(found, dict) else None
    if not isinstance(times, int):
        raise UserError(f"{counter} is damaged: it counts how often the test split was evaluated; write it anew")
    return times
