"""All candidates of a search: the front, the pick, hypervolume per generation, files."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.systems.backbone_search.evolution.candidates import Candidate
from tenfold.systems.backbone_search.evolution.ranking import front, hypervolume, knee


def objectives_of(candidates: Sequence[Candidate], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Values to be minimised ``(n, 1 + costs)`` and violations ``(n,)``."""
    values = [[-c.score, *(c.costs[name] for name in names)] for c in candidates]
    return np.array(values, dtype=np.float64).reshape(-1, 1 + len(names)), np.array([c.violation for c in candidates])


def front_of(candidates: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    """Feasible candidates that none dominates, from cheap to dear; of equals the first.

    Args:
        candidates: all.
        names: of the costs that count beside the score.
    """
    values, violations = objectives_of(candidates, names)
    chosen = [candidates[row] for row in front(values, violations)]
    unique = {(c.score, *(c.costs[name] for name in names)): c for c in reversed(chosen)}
    return sorted(unique.values(), key=lambda c: (*(c.costs[name] for name in names), c.slot))


def pick(candidates: Sequence[Candidate], names: Sequence[str], rule: str = "best") -> Candidate:
    """The candidate to deliver, from the whole archive.

    Args:
        candidates: all.
        names: costs that are minimised.
        rule: ``best`` score within the limits (ties to the cheaper), or the ``knee`` of the front.

    Raises:
        UserError: none is within the limits, or the rule is unknown.
    """
    if rule not in ("best", "knee"):
        raise UserError(f"the rule is best or knee; got {rule!r}")
    found = front_of(candidates, names)
    if not found:
        raise UserError("no candidate of this search is within the limits: raise the limits or search longer")
    if rule == "knee" and len(found) > 2:
        return found[knee(objectives_of(found, names[:1])[0])]
    return max(found, key=lambda c: (c.score, [-c.costs[name] for name in names]))


def hypervolumes(candidates: Sequence[Candidate], names: Sequence[str], reference: Sequence[float]) -> list[float]:
    """Hypervolume after each generation, of all feasible candidates so far.

    Args:
        candidates: all.
        names: costs that are minimised.
        reference: worst values: a score of 0, and a cost each.

    Returns:
        One number per generation, as a share of the box between a score of 1 at no cost and the reference.
    """
    volumes = []
    last = max((c.generation for c in candidates), default=-1)
    for generation in range(last + 1):
        now = [c for c in candidates if c.generation <= generation and c.violation == 0]
        values, _ = objectives_of(now, names)
        volumes.append(hypervolume(values, [0.0, *reference]) / float(np.prod(reference)))
    return volumes


def archive_lines(candidates: Sequence[Candidate]) -> str:
    """``archive.jsonl``: one line per candidate, by slot; the same for the same search."""
    kept = [{**asdict(c), "details": {k: v for k, v in c.details.items() if k != "seconds"}} for c in candidates]
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept)


def front_table(candidates: Sequence[Candidate], names: Sequence[str]) -> str:
    """``front.csv``: score and costs of the front, and the genome."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    found = front_of(candidates, names)
    costs: list[str] = list(found[0].costs) if found else list(names)
    writer.writerow(["slot", "generation", "score", *costs, "digest", "genome"])
    for c in found:
        writer.writerow([c.slot, c.generation, c.score, *(c.costs[n] for n in costs), c.digest, json.dumps(c.genome)])
    return text.getvalue()


def read_archive(text: str, source: str) -> list[Candidate]:
    """Candidates from what ``archive_lines`` wrote.

    Raises:
        UserError: the text is not that.
    """
    found: list[Candidate] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values: dict[str, Any] = json.loads(line)
            found.append(Candidate(**values))
        except (ValueError, TypeError) as error:
            raise UserError(f"{source}, line {number} is no candidate: {error}") from error
    return found
