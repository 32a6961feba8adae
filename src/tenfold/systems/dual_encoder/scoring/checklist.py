"""Checklists: yes/no questions about every image, each with a threshold for a wanted recall, and abstention.

A threshold is chosen on labelled images so that the wanted share of those whose answer is yes is found. Images between
the thresholds of yes and no are left to a person. Shares come with Wilson's interval.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tenfold.errors import UserError
from tenfold.files import printable, read_json, read_text


@dataclass(frozen=True)
class Check:
    """One question of a checklist.

    Attributes:
        question: the question.
        answer: the answer that counts as yes.
        yes_from: probability from which it is yes.
        no_below: probability below which it is no; between the two a person decides.
        recall: share of the labelled yes that ``yes_from`` finds; ``None`` where nothing was labelled.
        precision: share of what it finds that is yes.
        labelled: number of labelled images.
    """

    question: str
    answer: str = "yes"
    yes_from: float = 0.5
    no_below: float = 0.5
    recall: float | None = None
    precision: float | None = None
    labelled: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.no_below <= self.yes_from <= 1:
            raise UserError(
                f"thresholds must be 0 <= no_below <= yes_from <= 1; got {self.no_below} and {self.yes_from} for "
                f"{printable(self.question, 60)!r}"
            )

    def decide(self, probability: float) -> str:
        """``yes``, ``no``, or ``unsure``."""
        return "yes" if probability >= self.yes_from else "no" if probability < self.no_below else "unsure"


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Args:
        successes: how many.
        trials: of how many; the interval is (0, 1) without any.
        z: quantile of the normal distribution.

    Example:
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # Of none and of all the far end is exactly that.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def choose_thresholds(
    probabilities: ArrayLike, labels: ArrayLike, question: str, *, answer: str = "yes", recall: float = 0.95,
    abstain: float = 0.0,
) -> Check:  # fmt: skip
    """The highest threshold that still finds a share of the labelled yes, and, below it, a zone of doubt.

    Args:
        probabilities: ``(n,)`` of the answer, of labelled images.
        labels: ``(n,)`` whether it is right.
        question: the question.
        answer: see ``Check``.
        recall: share of the labelled yes that must be found, in (0, 1].
        abstain: share of the labelled yes that may be lost below ``no_below``, in [0, 1 - recall]: between the two a
            person decides. Where it is 0 and the recall is 1, there is no such zone.

    Raises:
        UserError: nothing is labelled yes, or a share is out of range.
    """
    chance, right = np.asarray(probabilities, float), np.asarray(labels, bool)
    if not 0 < recall <= 1 or not 0 <= abstain <= 1 - recall + 1e-12:
        raise UserError(f"recall must lie in (0, 1] and abstain in [0, 1 - recall]; got {recall} and {abstain}")
    positives = np.sort(chance[right])[::-1]
    if not len(positives):
        raise UserError(f"no labelled image is yes for {printable(question, 60)!r}: a recall cannot be chosen")
    yes = float(positives[math.ceil(recall * len(positives) - 1e-9) - 1])
    no = float(positives[math.ceil((1 - abstain) * len(positives) - 1e-9) - 1])
    found = chance >= yes
    return Check(
        question,
        answer,
        yes,
        min(no, yes),
        recall=float(found[right].mean()),
        precision=float(right[found].mean()),
        labelled=len(chance),
    )


def read_checklist(path: str | Path) -> list[Check]:
    """A checklist: a text file with a question per line, or what ``write_checklist`` wrote.

    Raises:
        UserError: the file is damaged, or holds no question.
    """
    if Path(path).suffix == ".json":
        content = read_json(path)
        try:
            found = [Check(**row) for row in content["checks"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{printable(path)} is no checklist: {printable(error)}") from error
    else:
        found = [Check(line.strip()) for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise UserError(f"{printable(path)} holds no question")
    return found


def checklist_text(checks: Sequence[Check]) -> str:
    """The JSON text of a checklist with its thresholds."""
    return json.dumps({"checks": [asdict(check) for check in checks]}, indent=1, ensure_ascii=False) + "\n"


def read_labels(path: str | Path) -> dict[tuple[str, str], bool]:
    """Labels of images by image and question, from JSON lines ``{"image", "question", "label"}`` as vlmeter writes
    them.

    The label may be called ``label``, ``answer`` or ``expected``, and be true or false, yes or no.

    Raises:
        UserError: a line is damaged; names it.
    """
    found = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise UserError(f"{printable(path)}, line {number} is not JSON") from error
        given = row if isinstance(row, Mapping) else {}
        label = next((given[name] for name in ("label", "expected", "answer") if name in given), None)
        word = str(label).lower()
        if not given.get("image") or not given.get("question") or word not in ("yes", "no", "true", "false"):
            raise UserError(f"{printable(path)}, line {number} needs image, question and a label of yes or no")
        found[str(given["image"]), str(given["question"])] = word in ("yes", "true")
    if not found:
        raise UserError(f"{printable(path)} holds no labels")
    return found


def tally(decisions: Sequence[str]) -> dict[str, Any]:
    """How many images are yes, no and unsure, and the share of yes among the decided with Wilson's interval."""
    yes, no = decisions.count("yes"), decisions.count("no")
    low, high = wilson(yes, yes + no)
    share = yes / (yes + no) if yes + no else None
    return {"yes": yes, "no": no, "unsure": len(decisions) - yes - no, "share_of_yes": share, "interval": [low, high]}
