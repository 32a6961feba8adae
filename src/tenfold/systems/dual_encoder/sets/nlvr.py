"""NLVR (Suhr et al. 2017): true or false sentences about three boxes, drawn from their structured representation."""

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.data.images import find_data
from tenfold.errors import UserError
from tenfold.files import first_line, printable
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

PERMUTATIONS = tuple(itertools.permutations(range(3)))
"""Which box stands in which place, for the six images of a sentence."""
_COLOURS = {"Yellow": (255, 255, 0), "Black": (0, 0, 0), "#0099ff": (0, 153, 255)}
_OVER, _GROUND, _BOX, _BOX_GROUND, _STRIDE = 4, 128, 100, 211, 150


def render_boxes(boxes: Sequence[Sequence[Mapping[str, Any]]], permutation: Sequence[int] = (0, 1, 2)) -> np.ndarray:
    """The image of a structured representation: grey ground, three lighter boxes, shapes with smooth edges.

    Args:
        boxes: three lists of items with ``x_loc``, ``y_loc``, ``size``, ``type`` and ``color``.
        permutation: the box that stands in each place.

    Returns:
        ``(100, 400, 3)`` uint8.

    Raises:
        UserError: a box or an item is damaged.
    """
    image = np.full((_BOX, 400, 3), _GROUND, np.uint8)
    try:
        for place, number in enumerate(permutation):
            image[:, place * _STRIDE : place * _STRIDE + _BOX] = _render_box(boxes[number])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"a structured representation is damaged: {first_line(error)}") from error
    return image


def _render_box(items: Sequence[Mapping[str, Any]]) -> np.ndarray:
    from PIL import Image, ImageDraw

    large = Image.new("RGB", (_BOX * _OVER, _BOX * _OVER), (_BOX_GROUND,) * 3)
    draw = ImageDraw.Draw(large)
    for item in items:
        left, top, size = (_OVER * float(item[name]) for name in ("x_loc", "y_loc", "size"))
        right, bottom = left + size - 1, top + size - 1
        colour = _COLOURS[item["color"]]
        if item["type"] == "circle":
            draw.ellipse((left, top, right, bottom), fill=colour)
        elif item["type"] == "triangle":
            draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
        elif item["type"] == "square":
            draw.rectangle((left, top, right, bottom), fill=colour)
        else:
            raise ValueError(f"unknown type {item['type']!r}")
    return np.asarray(large.resize((_BOX, _BOX), Image.Resampling.BOX))


class BoxImages:
    """Images that are drawn from structured representations when they are asked for: all of NLVR's are 9 GB.

    Args:
        drawings: boxes and permutation of each, see ``render_boxes``.
        names: a name for each.
    """

    def __init__(self, drawings: Sequence[tuple[Any, Sequence[int]]], names: Sequence[str]) -> None:
        self.drawings, self.names = list(drawings), list(names)

    def picture(self, number: int) -> Any:
        """See ``ImageStore``."""
        from PIL import Image

        return Image.fromarray(render_boxes(*self.drawings[number]))

    def prepared(self, rows: Sequence[int], preparation: ImagePreparation) -> list[Tensor]:
        """See ``ImageStore``."""
        return [preparation.prepare(self.picture(row)) for row in rows]


def read_json_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file, plain or gzipped.

    Raises:
        UserError: it cannot be read, or a line is no JSON object; names the line.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {printable(path)}: {first_line(error)}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError as error:
                raise UserError(f"{printable(path)}, line {number} is not JSON") from error
            if not isinstance(found, dict):
                raise UserError(f"{printable(path)}, line {number} is no JSON object")
            yield found


def nlvr_questions(path: str | Path, permutations: Sequence[int] = range(6)) -> VisualQuestions:
    """The questions of one file, with images drawn from its structured representations.

    Args:
        path: ``dev.json`` and the like, plain or gzipped.
        permutations: which of the six images of a sentence.

    Raises:
        UserError: the file is damaged.
    """
    drawings, questions, labels, ids, groups = [], [], [], [], []
    for number, row in enumerate(read_json_lines(path)):
        missing = [name for name in ("sentence", "identifier", "label", "structured_rep") if name not in row]
        if missing or str(row["label"]).lower() not in ("true", "false"):
            raise UserError(
                f"{printable(path)}, example {number}: {missing[0] if missing else 'label'!r} is missing or wrong"
            )
        for k in permutations:
            drawings.append((row["structured_rep"], PERMUTATIONS[k]))
            questions.append(str(row["sentence"]))
            labels.append({str(row["label"]).lower(): 1.0})
            ids.append(f"{row['identifier']}-{k}")
            groups.append(str(row["identifier"]).split("-")[0])
    if not drawings:
        raise UserError(f"{printable(path)} holds no examples")
    return VisualQuestions(
        images=BoxImages(drawings, ids),
        questions=tuple(questions),
        rows=torch.arange(len(questions))[:, None],
        labels=tuple(labels),
        answers=("false", "true"),
        task="classes",
        ids=tuple(ids),
        groups=tuple(groups),
    )


def nlvr(root: str | None = None, *, questions: int = 0, test: int = 0) -> QuestionSplits:
    """Training, development and test sentences; where there is no training file, as in the data folder, the two test
    files train and development tests.

    Args:
        root: folder with ``train``, ``dev``, ``test`` (and ``hidden``), or one that holds it as ``nlvr`` or
            ``visual-reasoning/nlvr``.
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.

    Raises:
        UserError: the data are missing or damaged.
    """
    base = find_data(root)
    folder = next((f for f in (base, base / "nlvr", base / "visual-reasoning/nlvr") if (f / "dev").is_dir()), None)
    if folder is None:
        raise UserError(f"{printable(base)} holds no NLVR (nlvr/dev/dev.json): it is published at lil-lab/nlvr")

    def file(split: str) -> Path | None:
        found = [folder / split / f"{split}.json{ending}" for ending in ("", ".gz")]
        return next((path for path in found if path.exists()), None)

    notes: tuple[str, ...] = ()
    paths = {split: file(split) for split in ("train", "dev", "test", "hidden")}
    if paths["train"] and paths["dev"] and paths["test"]:
        names = ("train", "dev", "test")
    elif paths["test"] and paths["hidden"] and paths["dev"]:
        names = ("test", "hidden", "dev")
        notes = ("no training file: the published test sentences train, the hidden ones validate, development tests",)
    else:
        raise UserError(f"{printable(folder)} lacks files: train, dev and test, or test, hidden and dev")
    train, validation, tested = (nlvr_questions(paths[name]) for name in names)  # type: ignore[arg-type]
    return QuestionSplits(
        "nlvr",
        train.subset(range(min(questions or len(train), len(train)))),
        validation,
        tested.subset(range(min(test or len(tested), len(tested)))),
        notes,
    )
