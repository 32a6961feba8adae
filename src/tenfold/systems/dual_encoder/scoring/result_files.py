"""Answers in the format that each benchmark's server or scorer takes."""

import csv
import io
import json
from pathlib import Path

import numpy as np

from tenfold.files import write_atomically
from tenfold.systems.dual_encoder.sets.questions import VisualQuestions


def write_predictions(path: str | Path, name: str, data: VisualQuestions, chosen: np.ndarray) -> None:
    """Write answers: VQA's JSON list, NLVR's and NLVR2's ``identifier,true|false`` lines, else ``id,answer`` lines.

    Args:
        path: the file.
        name: of the set.
        data: the questions.
        chosen: ``(n,)`` numbers of answers.
    """
    answers = [data.answers[number] for number in chosen.tolist()]
    if name == "vqa-v2":
        rows = [
            {"question_id": int(number), "answer": answer} for number, answer in zip(data.ids, answers, strict=True)
        ]
        write_atomically(path, json.dumps(rows, ensure_ascii=False))
        return
    if name in ("nlvr", "nlvr2"):
        answers = [answer.lower() for answer in answers]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(data.ids, answers, strict=True))
    write_atomically(path, text.getvalue())
