"""SHAPES (Andreas et al. 2016): yes/no questions about 3 x 3 grids of shapes; files, executor, generator.

A query is an s-expression: ``(is A B)`` whether some cell is in both sets; ``red`` ..., ``circle`` ... the cells of
that colour or shape; ``(left_of X)`` the cells whose direct right neighbour is in X (one step, no wrap), and so on;
they nest.
"""

import gzip
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.data.images import find_data
from tenfold.errors import UserError
from tenfold.files import first_line, printable
from tenfold.systems.dual_encoder.sets.images import ArrayImages
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

COLOURS = ("red", "green", "blue")
FORMS = ("square", "circle", "triangle")
_STEPS = {"left_of": (0, 1), "right_of": (0, -1), "above": (1, 0), "below": (-1, 0)}
_SIDE, _CELL, _FILLED = 3, 10, 0.8
_OVER = 8  # samples per pixel and axis of the drawing
Query = Any
"""A name, or a list of a function's name and its arguments."""


def parse_query(text: str) -> Query:
    """An s-expression as nested lists.

    Args:
        text: such as ``(is red (next-to circle))``.

    Raises:
        UserError: it is none of SHAPES.
    """
    tokens = re.findall(r"[()]|[^\s()]+", text)

    def read(place: int) -> tuple[Query, int]:
        if tokens[place] != "(":
            return tokens[place], place + 1
        parts, place = [], place + 1
        while tokens[place] != ")":
            part, place = read(place)
            parts.append(part)
        return parts, place + 1

    try:
        found, end = read(0)
    except (IndexError, RecursionError) as error:
        raise UserError(f"the query {printable(text, 80)!r} is not an s-expression") from error
    if end != len(tokens):
        raise UserError(f"the query {printable(text, 80)!r} is not one s-expression")
    return found


def execute_query(query: Query, colours: np.ndarray, forms: np.ndarray) -> np.ndarray:
    """Answers of a query about scenes.

    Args:
        query: see ``parse_query``; ``(is A B)`` at the top.
        colours: ``(n, 3, 3)`` number of each cell's colour, -1 in empty ones.
        forms: ``(n, 3, 3)`` number of each cell's shape, -1 in empty ones.

    Returns:
        ``(n,)`` booleans; ``(n, 3, 3)`` sets of cells for a part of a query.

    Raises:
        UserError: a name or form is unknown.
    """
    if isinstance(query, str):
        if query in COLOURS:
            return colours == COLOURS.index(query)
        if query in FORMS:
            return forms == FORMS.index(query)
    elif len(query) == 3 and query[0] == "is":
        first, second = (execute_query(part, colours, forms) for part in query[1:])
        return (first & second).any((1, 2))
    elif len(query) == 2 and query[0] in _STEPS:
        inner = execute_query(query[1], colours, forms)
        down, right = _STEPS[query[0]]
        padded = np.pad(inner, ((0, 0), (1, 1), (1, 1)))
        return padded[:, 1 + down : 4 + down, 1 + right : 4 + right]
    raise UserError(f"a query of SHAPES holds colours, shapes, places and 'is'; got {printable(query, 80)}")


def draw_scenes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes with the distribution of the published ones.

    Each cell is filled with probability 0.8; colour, shape and size (small or big) are uniform; levels are a pure
    channel and noise of up to 51 on every channel.

    Args:
        count: number of scenes.
        rng: of all that is drawn.

    Returns:
        ``(count, 30, 30, 3)`` uint8 red, green, blue; ``(count, 3, 3)`` colours and shapes, -1 in empty cells.
    """
    size = (count, _SIDE, _SIDE)
    filled = rng.random(size) < _FILLED
    colours, forms = (np.where(filled, rng.integers(0, 3, size), -1) for _ in range(2))
    extent = np.where(rng.random(size) < 0.5, rng.uniform(4.5, 5.5, size), rng.uniform(6.8, 8.2, size))
    cover = _coverage(forms, extent)
    levels = (255 * np.eye(3)[colours] + rng.uniform(-51, 51, (*size, 3))).clip(0, 255)
    cells = np.rint(cover[..., None] * levels[:, :, :, None, None]).astype(np.uint8)
    images = cells.transpose(0, 1, 3, 2, 4, 5).reshape(count, 30, 30, 3)
    return images, colours, forms


def _coverage(forms: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Share of each pixel of each cell that the shape covers: ``(n, 3, 3, 10, 10)``."""
    steps = (np.arange(_CELL * _OVER) + 0.5) / _OVER - _CELL / 2
    y, x = np.meshgrid(steps, steps, indexing="ij")
    half = extent[..., None, None] / 2
    square = (abs(x) <= half) & (abs(y) <= half)
    circle = x**2 + y**2 <= half**2
    triangle = (abs(y) <= half) & (abs(x) <= (y + half) / 2)
    inside = np.select([forms[..., None, None] == n for n in range(3)], [square, circle, triangle], False)
    return inside.reshape(*forms.shape, _CELL, _OVER, _CELL, _OVER).mean((-3, -1))


def read_shapes(folder: str | Path, split: str) -> VisualQuestions:
    """One split of the published files, plain or gzipped: ``SPLIT.input.npy`` (B, G, R), ``.query_str.txt``,
    ``.output``.

    Args:
        folder: the folder.
        split: ``val``, ``test``, ``train.tiny`` ..., of those that have images.

    Raises:
        UserError: a file is missing or damaged, or their rows do not correspond.
    """
    content = _content(folder, f"{split}.input.npy")
    try:
        images = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{printable(folder)}/{split}.input.npy is damaged: {first_line(error)}") from error
    questions, answers = (
        _content(folder, f"{split}.{ending}").decode("utf-8", "replace").split("\n")[:-1]
        for ending in ("query_str.txt", "output")
    )
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise UserError(f"{printable(folder)}/{split}.input.npy holds {images.shape} {images.dtype}, no images")
    if not len(images) == len(questions) == len(answers) or not set(answers) <= {"true", "false"}:
        raise UserError(f"the files of {printable(folder)}/{split} do not belong together")
    return _questions(
        np.ascontiguousarray(images[..., ::-1]), questions, ["yes" if a == "true" else "no" for a in answers]
    )


def _questions(images: np.ndarray, questions: Sequence[str], answers: Sequence[str]) -> VisualQuestions:
    return VisualQuestions(
        images=ArrayImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()),
        questions=tuple(questions),
        rows=torch.arange(len(questions))[:, None],
        labels=tuple({answer: 1.0} for answer in answers),
        answers=("no", "yes"),
        task="classes",
        kinds=tuple(f"{len(re.findall('left|right|above|below', question))} places" for question in questions),
    )


def _content(folder: str | Path, name: str) -> bytes:
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.exists():
            try:
                return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            except (OSError, EOFError) as error:
                raise UserError(f"cannot read {printable(path)}: {first_line(error)}") from error
    raise UserError(
        f"{printable(folder)} holds no {name}: SHAPES is published in ronghanghu/n2nmn, exp_shapes/shapes_dataset"
    )


def shapes(root: str | None = None, *, questions: int = 20000, test: int = 0, seed: int = 0) -> QuestionSplits:
    """The published validation and test questions; training scenes are drawn for the published training queries.

    Args:
        root: folder of the files, or one that holds them as ``shapes`` or ``visual-reasoning/shapes``.
        questions: training questions, spread evenly over the queries of ``train.large``; 0 for 64 of each, as
            published.
        test: test questions at most, 0 for all.
        seed: of the drawn scenes.

    Raises:
        UserError: the data are missing or damaged.
    """
    base = find_data(root)
    folder = next(
        (f for f in (base, base / "shapes", base / "visual-reasoning/shapes") if any(f.glob("val.query*"))), base
    )
    queries, texts = (
        _content(folder, f"train.large.{ending}").decode("utf-8", "replace").split("\n")[:-1]
        for ending in ("query", "query_str.txt")
    )
    known = dict(zip(queries, texts, strict=True))
    each = max(1, round(questions / len(known))) if questions else 64
    rng = np.random.default_rng([seed, 0])
    drawn, asked, answers = [], [], []
    for query, text in known.items():
        images, colours, forms = draw_scenes(each, rng)
        drawn.append(images)
        asked += [text] * each
        answers += ["yes" if right else "no" for right in execute_query(parse_query(query), colours, forms)]
    tested = read_shapes(folder, "test")
    return QuestionSplits(
        "shapes",
        _questions(np.concatenate(drawn), asked, answers),
        read_shapes(folder, "val"),
        tested.subset(range(min(test or len(tested), len(tested)))),
        ("training scenes are drawn with the published distribution; the test's queries are not among training's",),
    )
