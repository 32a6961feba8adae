"""``checklist``: many questions about every image of an index, with thresholds that were chosen on labelled images."""

import csv
import io
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.files import printable, refuse_overwriting, write_atomically
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.load import load
from tenfold.systems.dual_encoder.scoring.checklist import (
    checklist_text,
    choose_thresholds,
    read_checklist,
    read_labels,
    tally,
)


def checklist(
    run: str,
    index: str,
    questions: str,
    *,
    labels: str | None = None,
    recall: float = 0.95,
    abstain: float = 0.0,
    out: str | None = None,
    table: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Ask every question of a list about every image of an index; choose thresholds on labelled images first, if any.

    Args:
        run: folder of a run or model.
        index: folder of its index.
        questions: text file with a question per line, or a checklist with thresholds (JSON).
        labels: JSON lines of image, question and label (yes or no), as vlmeter writes them; images by their names in
            the index.
        recall: share of the labelled yes that a threshold must find.
        abstain: share of the labelled yes that may be lost for good: what lies between is left to a person.
        out: file for the checklist with its thresholds (JSON), for the next time.
        table: CSV file for the decisions: a row per image, a column per question.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    answerer, opened = load(run, factory=factory), VisualIndex.open(index)
    checks = read_checklist(questions)
    for target in (out, table):
        if target is not None:
            refuse_overwriting(target, questions, *([labels] if labels else []))
    names = list(opened.ids())
    chances = np.stack([answerer.chances([check.question], opened, check.answer)[0].cpu().numpy() for check in checks])
    if labels is not None:
        known = read_labels(labels)
        place = {name: number for number, name in enumerate(names)}
        for number, check in enumerate(checks):
            mine = {image: label for (image, question), label in known.items() if question == check.question}
            absent = next((image for image in mine if image not in place), None)
            if absent is not None:
                raise UserError(f"the labelled image {printable(absent)} is not in the index")
            if not mine:
                raise UserError(f"no image is labelled for {printable(check.question, 60)!r}")
            rows = [place[image] for image in mine]
            checks[number] = choose_thresholds(
                chances[number][rows], list(mine.values()), check.question, answer=check.answer, recall=recall,
                abstain=abstain,
            )  # fmt: skip
    decided = [[check.decide(float(p)) for p in row] for check, row in zip(checks, chances, strict=True)]
    if out is not None:
        write_atomically(out, checklist_text(checks))
    if table is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *(check.question for check in checks)])
        writer.writerows([name, *answers] for name, answers in zip(names, zip(*decided, strict=True), strict=True))
        write_atomically(table, text.getvalue())
    return {
        "images": len(names),
        "checks": [
            {
                "question": check.question,
                **tally(row),
                "yes_from": check.yes_from,
                "recall": check.recall,
                "precision": check.precision,
            }
            for check, row in zip(checks, decided, strict=True)
        ],
    }
