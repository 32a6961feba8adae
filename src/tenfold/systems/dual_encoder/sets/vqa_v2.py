"""VQA v2 (Goyal et al. 2017) in its published layout: questions, ten people's answers, COCO's images."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.files import printable, read_json
from tenfold.systems.dual_encoder.scoring.vqa_accuracy import normalize_answer, soft_score
from tenfold.systems.dual_encoder.sets.images import FileImages
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

_LARGEST = 2**30
_HELD_BACK = 1000
"""Validation images by ascending id, the last of which select; the others train. ViLT's own are the last of an unseeded
shuffle, which nobody can repeat."""


def answer_list(annotations: Iterable[Mapping[str, Any]], least_count: int = 9) -> tuple[str, ...]:
    """The closed list: normalized most frequent answers that occur often enough, in the order of first appearance.

    With training and validation annotations and a count of 9 these are ViLT's 3,129.

    Args:
        annotations: training first, then validation.
        least_count: of an answer.
    """
    counts = Counter(normalize_answer(str(one["multiple_choice_answer"]), commas=False) for one in annotations)
    return tuple(answer for answer, count in counts.items() if count >= least_count)


def soft_label(people: Iterable[str], answers: Mapping[str, Any] | frozenset[str]) -> dict[str, float]:
    """Scores of a question's answers: by how many people gave them, of those that are in the list.

    Args:
        people: the raw answers.
        answers: the list.
    """
    return {answer: soft_score(count) for answer, count in Counter(people).items() if answer in answers}


def read_part(root: str | Path, split: str) -> tuple[list[dict], dict[int, dict]]:
    """Questions and annotations (by question) of ``train2014`` or ``val2014``.

    Raises:
        UserError: a file is missing or damaged, or the two are exchanged.
    """
    root = Path(root)
    names = (f"v2_OpenEnded_mscoco_{split}_questions.json", f"v2_mscoco_{split}_annotations.json")
    for name in names:
        if not (root / name).exists():
            raise UserError(
                f"{printable(root)} holds no {name}: VQA v2 is published at visualqa.org; its images are COCO's "
                f"{split}/COCO_{split}_000000000000.jpg"
            )
    questions, annotations = (read_json(root / name, _LARGEST) for name in names)
    if not isinstance(questions, dict) or "questions" not in questions or "annotations" not in annotations:
        raise UserError(f"{printable(root / names[0])} and the annotations beside it are damaged, or exchanged")
    return questions["questions"], {int(one["question_id"]): one for one in annotations["annotations"]}


def vqa_v2(root: str | Path, *, least_count: int = 9, questions: int = 0, test: int = 0) -> QuestionSplits:
    """Training and most of validation to learn from, the questions of the last 1,000 validation images to select and
    test.

    Questions without any answer of the list are not learnt from, and count as wrong in the test.

    Args:
        root: folder of the published files and of ``train2014`` and ``val2014``.
        least_count: see ``answer_list``.
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.

    Raises:
        UserError: files are missing or damaged; the first missing image is named.
    """
    parts = {split: read_part(root, split) for split in ("train2014", "val2014")}
    answers = answer_list((one for _, people in parts.values() for one in people.values()), least_count)
    if not answers:
        raise UserError(f"no answer occurs {least_count} times: lower data.least_count")
    held = set(sorted({int(q["image_id"]) for q in parts["val2014"][0]})[-_HELD_BACK:])
    found: dict[str, list[tuple[str, dict, dict]]] = {"train": [], "rest": []}
    for split, (asked, people) in parts.items():
        for question in asked:
            annotation = people.get(int(question["question_id"]))
            if annotation is None:
                raise UserError(
                    f"question {question['question_id']} of {split} has no annotation: the files do not match"
                )
            part = "rest" if split == "val2014" and int(question["image_id"]) in held else "train"
            found[part].append((split, question, annotation))
    train = _questions(root, found["train"][: questions or None], answers, drop=True)
    rest = _questions(root, found["rest"], answers, drop=False)
    tested = rest.subset(range(min(test or len(rest), len(rest))))
    left = len(found["train"][: questions or None]) - len(train)
    notes = (
        f"{left:,} training questions without an answer of the list of {len(answers):,} are left out",
        f"selected and tested on the questions of the last {_HELD_BACK:,} validation images by id: the published test "
        "answers are the server's",
    )
    return QuestionSplits("vqa-v2", train, rest, tested, notes)


def _questions(
    root: str | Path, rows: list[tuple[str, dict, dict]], answers: tuple[str, ...], *, drop: bool
) -> VisualQuestions:
    known = frozenset(answers)
    kept = []
    for split, question, annotation in rows:
        people = tuple(str(one["answer"]) for one in annotation["answers"])
        label = soft_label(people, known)
        if label or not drop:
            kept.append((split, question, annotation, people, label))
    paths = [_image(root, split, int(question["image_id"])) for split, question, *_ in kept]
    order = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    missing = next((path for path in order if not path.exists()), None)
    if missing is not None:
        raise UserError(f"the image {printable(missing)} is missing")
    return VisualQuestions(
        images=FileImages(list(order)),
        questions=tuple(str(question["question"]) for _, question, *_ in kept),
        rows=torch.tensor([order[path] for path in paths])[:, None],
        labels=tuple(label for *_, label in kept),
        answers=answers,
        task="multilabel",
        kinds=tuple(str(annotation.get("answer_type", "all")) for _, _, annotation, *_ in kept),
        ids=tuple(str(question["question_id"]) for _, question, *_ in kept),
        annotations=() if drop else tuple(people for *_, people, _ in kept),
    )


def _image(root: str | Path, split: str, number: int) -> Path:
    return Path(root) / split / f"COCO_{split}_{number:012d}.jpg"
