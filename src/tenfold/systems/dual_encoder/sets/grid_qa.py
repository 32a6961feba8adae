"""GridQA: coloured shapes on a small grid, and questions that need words and places together; drawn when asked for.

A scene has ``side x side`` cells of 8 pixels, one patch each; a cell holds a shape with probability 0.8. Questions are
of three kinds, drawn equally: the colour at a place, the shape at a place, and whether there is an object of a colour
and shape. Yes and no are drawn equally.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.sets.images import ArrayImages
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

CELL = 8
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "blue": (50, 70, 220), "yellow": (215, 205, 45),
           "purple": (150, 50, 170), "white": (215, 215, 215)}  # fmt: skip
SHAPES = ("square", "circle", "triangle")
PLACES = {
    1: ("middle",),
    2: ("nw", "ne", "sw", "se"),
    3: ("nw", "n", "ne", "w", "middle", "e", "sw", "s", "se"),
}
ANSWERS = (*COLOURS, *SHAPES, "none", "yes", "no")
KINDS = ("colour at a place", "shape at a place", "is there")
_FILLED, _JITTER = 0.8, 30


def grid_qa(
    scenes: int = 20000,
    *,
    questions_per_scene: int = 2,
    validation: int = 500,
    test: int = 1500,
    side: int = 2,
    seed: int = 0,
) -> QuestionSplits:
    """Draw training, validation and test questions, each part on scenes of its own.

    Args:
        scenes: training scenes.
        questions_per_scene: of training; validation and test ask one per scene.
        validation: number of validation questions.
        test: number of test questions; the same for every number of training scenes.
        side: cells per row and column: 1, 2 or 3.
        seed: of all that is drawn.

    Raises:
        UserError: a number is out of range.
    """
    if side not in PLACES or min(scenes, questions_per_scene, validation, test) < 1:
        raise UserError(f"GridQA needs a side of 1, 2 or 3 and at least one scene and question; got side {side}")
    parts = []
    for number, (count, each) in enumerate(((scenes, questions_per_scene), (validation, 1), (test, 1))):
        rng = np.random.default_rng([seed, number])
        cells = _draw_cells(rng, count, side)
        parts.append(_ask(rng, cells, render(cells, rng), each, side))
    train, validated, tested = parts
    return QuestionSplits("grid-qa", train, validated, tested)


def _draw_cells(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """``(count, side^2, 2)`` colour and shape of each cell; -1 in empty ones."""
    size = (count, side * side)
    cells = np.stack([rng.integers(0, len(COLOURS), size), rng.integers(0, len(SHAPES), size)], -1)
    return np.where(rng.random(size)[..., None] < _FILLED, cells, -1)


def _masks() -> np.ndarray:
    """``(shapes + 1, 8, 8)`` which pixels a shape covers; the last covers none, for empty cells."""
    y, x = np.mgrid[:CELL, :CELL] - (CELL - 1) / 2
    square = (abs(x) < 3) & (abs(y) < 3)
    circle = x**2 + y**2 < 3.2**2
    triangle = (y < 3) & (y > -3.6) & (abs(x) < (y + 3.6) / 2)
    return np.stack([square, circle, triangle, np.zeros_like(square)])


def render(cells: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Scenes as images on black ground; each object's colour is off by up to 30 levels per channel.

    Args:
        cells: ``(n, side^2, 2)`` colour and shape of each cell, -1 in empty ones.
        rng: of the jitter.

    Returns:
        ``(n, 3, 8 side, 8 side)`` uint8.
    """
    n, places, _ = cells.shape
    side = round(places**0.5)
    palette = np.asarray([*COLOURS.values(), (0, 0, 0)])
    colours = (palette[cells[..., 0]] + rng.integers(-_JITTER, _JITTER + 1, (n, places, 3))).clip(0, 255)
    painted = (_masks()[cells[..., 1]][:, :, None] * colours[..., None, None]).astype(np.uint8)
    grid = painted.reshape(n, side, side, 3, CELL, CELL).transpose(0, 3, 1, 4, 2, 5)
    return torch.from_numpy(np.ascontiguousarray(grid.reshape(n, 3, side * CELL, side * CELL)))


def _ask(rng: np.random.Generator, cells: np.ndarray, images: Tensor, each: int, side: int) -> VisualQuestions:
    colours, shapes, places = list(COLOURS), SHAPES, PLACES[side]
    rows = np.repeat(np.arange(len(cells)), each)
    kinds = rng.integers(0, 3, len(rows))
    at = rng.integers(0, len(places), len(rows))
    wanted, order = rng.random(len(rows)) < 0.5, rng.random((len(rows), len(COLOURS) * len(SHAPES)))
    questions, answers = [], []
    for place, row in enumerate(rows):
        scene = cells[row]
        if kinds[place] < 2:
            what, names = (("color", colours), ("shape", shapes))[kinds[place]]
            value = scene[at[place], kinds[place]]
            questions.append(f"what {what} is at {places[at[place]]}")
            answers.append("none" if value < 0 else names[value])
        else:
            pair, present = _pair(scene, bool(wanted[place]), order[place])
            questions.append(f"is there a {colours[pair // len(shapes)]} {shapes[pair % len(shapes)]}")
            answers.append("yes" if present else "no")
    return VisualQuestions(
        images=ArrayImages(images),
        questions=tuple(questions),
        rows=torch.from_numpy(rows)[:, None],
        labels=tuple({answer: 1.0} for answer in answers),
        answers=ANSWERS,
        task="multilabel",
        kinds=tuple(KINDS[kind] for kind in kinds),
    )


def _pair(scene: np.ndarray, wanted: bool, order: np.ndarray) -> tuple[int, bool]:
    """A colour and shape that a scene has, or has not, and whether it has it; an empty scene has none."""
    there = {int(c) * len(SHAPES) + int(s) for c, s in scene if c >= 0}
    among: Sequence[int] = [n for n in order.argsort().tolist() if (n in there) == wanted]
    return (among[0], wanted) if among else (int(order.argmin()), False)
