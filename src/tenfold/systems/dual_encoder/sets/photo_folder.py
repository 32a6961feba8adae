"""Questions of one's own: a folder of images, and a CSV or JSONL file of image, question and answer."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tenfold.data.images import stratified_order
from tenfold.errors import UserError
from tenfold.files import inside, printable, read_text
from tenfold.systems.dual_encoder.sets.images import FileImages
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

_IMAGES = ("image", "image2")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Asked:
    """One row of a table.

    Attributes:
        images: paths of its image or images.
        question: the question.
        answer: empty where the table has none.
        split: ``train``, ``validation``, ``test``, or empty.
        kind: of the question, or empty.
        line: of the file, for messages.
    """

    images: tuple[str, ...]
    question: str
    answer: str
    split: str
    kind: str
    line: int


def read_asked(path: str | Path, images: int = 1) -> list[Asked]:
    """Rows of a CSV file with a header, or of a JSONL file: ``image``, ``question`` and, if known, ``answer``.

    Further columns: ``image2`` of pairs, ``split`` (train, validation or test), ``kind``.

    Args:
        path: the file; its images are named relative to its folder, and lie in it.
        images: images per question.

    Raises:
        UserError: the file is damaged or lacks a column, a cell is empty, or an image is named outside the folder.
    """
    columns = _IMAGES[:images]
    found = []
    for line, row in _rows(path):
        missing = [name for name in (*columns, "question") if not str(row.get(name) or "").strip()]
        if missing:
            raise UserError(
                f"{printable(path)}, line {line}: {missing[0]!r} is missing; columns are "
                f"{', '.join(columns)}, question, answer"
            )
        split = str(row.get("split") or "").strip().lower()
        if split and split not in _SPLITS:
            raise UserError(
                f"{printable(path)}, line {line}: split {printable(split, 40)!r} is none of train, validation, test"
            )
        paths = tuple(str(inside(Path(path).parent, str(row[name]).strip())) for name in columns)
        absent = next((name for name in paths if not Path(name).is_file()), None)
        if absent is not None:
            raise UserError(f"{printable(path)}, line {line}: there is no image {printable(absent)}")
        answer, kind = (str(row.get(name) or "").strip() for name in ("answer", "kind"))
        found.append(Asked(paths, str(row["question"]).strip(), answer, _SPLITS.get(split, ""), kind, line))
    if not found:
        raise UserError(f"{printable(path)} holds no questions")
    return found


def _rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    text = read_text(path)
    if Path(path).suffix.lower() == ".jsonl":
        for line, content in enumerate(text.splitlines(), 1):
            if content.strip():
                try:
                    row = json.loads(content)
                except ValueError as error:
                    raise UserError(f"{printable(path)}, line {line} is not JSON") from error
                if not isinstance(row, dict):
                    raise UserError(f"{printable(path)}, line {line} is no JSON object")
                yield line, row
        return
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{printable(path)}, line {reader.line_num} is not CSV: {error}") from error


def photo_questions(
    root: str | Path, file: str, *, validation: int = 500, test: int = 500, seed: int = 0
) -> QuestionSplits:
    """Questions of one's own, split by image, so that no test image was learnt from.

    Args:
        root: folder of the images.
        file: the CSV or JSONL file in it. Where it has a column ``split``, that decides.
        validation: validation questions at most, where there is no such column; at most a fifth of all.
        test: test questions, likewise; 0 for a fifth of all.
        seed: of the split.

    Raises:
        UserError: see ``read_asked``; an answer is missing, or a part is empty.
    """
    path = inside(root, file)
    if not path.exists():
        raise UserError(f"there is no file {printable(path)}")
    pairs = "image2" in next((row for _, row in _rows(path)), {})
    rows = read_asked(path, 2 if pairs else 1)
    unknown = next((row for row in rows if not row.answer), None)
    if unknown is not None:
        raise UserError(f"{printable(path)}, line {unknown.line}: 'answer' is missing; training and tests need it")
    names = sorted({name for row in rows for name in row.images})
    numbers = {name: number for number, name in enumerate(names)}
    parts = [row.split or "train" for row in rows]
    notes = []
    if not any(row.split for row in rows):
        parts = _split_by_image(rows, validation, test, seed)
        sizes = ", ".join(f"{parts.count(name):,} {name}" for name in ("train", "validation", "test"))
        notes.append(f"the file has no column 'split': questions are split by image, at random (seed {seed}): {sizes}")
    elif without := sum(not row.split for row in rows):
        notes.append(f"{without:,} rows without a split are for training")
    answers = tuple(sorted({row.answer for row in rows}))
    images = FileImages([Path(name) for name in names])
    whole = VisualQuestions(
        images=images,
        questions=tuple(row.question for row in rows),
        rows=torch.tensor([[numbers[name] for name in row.images] for row in rows]),
        labels=tuple({row.answer: 1.0} for row in rows),
        answers=answers,
        task="classes",
        kinds=tuple(row.kind or "all" for row in rows),
        ids=tuple(str(row.line) for row in rows),
    )
    found = {}
    for name in ("train", "validation", "test"):
        chosen = [place for place, part in enumerate(parts) if part == name]
        if not chosen:
            raise UserError(f"{printable(path)} leaves no question for {name}: add rows, or a column 'split'")
        found[name] = whole.subset(chosen)
    return QuestionSplits("folder", found["train"], found["validation"], found["test"], tuple(notes))


def _split_by_image(rows: list[Asked], validation: int, test: int, seed: int) -> list[str]:
    """The part of each row: images in random order until a part has its questions; a fifth at most for each."""
    groups = _connected(rows)
    order = stratified_order([0] * (max(groups) + 1), seed=seed).tolist()
    counts = [groups.count(group) for group in range(max(groups) + 1)]
    fifth = max(1, len(rows) // 5)
    wanted = {"test": min(test or fifth, fifth), "validation": min(validation, fifth)}
    part_of = {}
    for group in order:
        name = next((part for part, left in wanted.items() if left > 0), "train")
        part_of[group] = name
        if name in wanted:
            wanted[name] -= counts[group]
    return [part_of[group] for group in groups]


def _connected(rows: list[Asked]) -> list[int]:
    """A number for each row, the same for rows that share an image."""
    numbers: dict[str, int] = {}
    if all(len(row.images) == 1 for row in rows):
        return [numbers.setdefault(row.images[0], len(numbers)) for row in rows]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places = [[numbers.setdefault(name, len(numbers)) for name in row.images] for row in rows]
    first, second = zip(*places, strict=True)
    graph = coo_array(([1] * len(rows), (first, second)), shape=(len(numbers), len(numbers)))
    labels = connected_components(graph, directed=False)[1]
    unique: dict[int, int] = {}
    return [unique.setdefault(int(labels[place]), len(unique)) for place in first]
