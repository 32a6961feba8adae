"""easy-VQA: 5,000 pictures of one shape each and 48,000 questions, in the package ``easy-vqa`` (MIT)."""

import re
from pathlib import Path

import numpy as np
import torch

from tenfold.data.reading import read_image
from tenfold.errors import UserError, require
from tenfold.files import read_json, read_text
from tenfold.systems.dual_encoder.sets.images import ArrayImages
from tenfold.systems.dual_encoder.sets.questions import QuestionSplits, VisualQuestions

_KINDS = ((r"^(what color|what is the color)", "colour"), (r"^what ", "shape"), (r"\b(not|no)\b", "is there not"))


def kind_of(question: str) -> str:
    """Kind of a question: colour, shape, is there, is there not."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, question)), "is there")


def easy_vqa(*, validation: int = 500, questions: int = 0, test: int = 0, seed: int = 0) -> QuestionSplits:
    """All questions of the package; validation questions come from training images of their own.

    Args:
        validation: validation questions at least.
        questions: training questions at most, 0 for all.
        test: test questions at most, 0 for all.
        seed: of the choice of validation images.

    Raises:
        UserError: the package is not installed, or its files are damaged.
    """
    folder = Path(str(require("easy_vqa", "easy-vqa").__file__)).parent / "data"
    answers = tuple(sorted(read_text(folder / "answers.txt").split()))
    whole, tested = (_part(folder / name, answers) for name in ("train", "test"))
    order = np.random.default_rng(seed).permutation(int(whole.rows.max()) + 1)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    place = ranks[whole.rows[:, 0].numpy()]
    held = int(np.searchsorted(np.bincount(place).cumsum(), validation)) + 1
    train = whole.subset(np.flatnonzero(place >= held)[: questions or None].tolist())
    return QuestionSplits(
        "easy-vqa",
        train,
        whole.subset(np.flatnonzero(place < held).tolist()),
        tested.subset(range(min(test or len(tested), len(tested)))),
        (f"{held} training images are held back for validation",),
    )


def _part(folder: Path, answers: tuple[str, ...]) -> VisualQuestions:
    rows = read_json(folder / "questions.json")
    try:
        texts, given, images = zip(*((str(q), str(a), int(n)) for q, a, n in rows), strict=True)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / 'questions.json'} is damaged: install the package easy-vqa again") from error
    count = max(images) + 1
    pixels = np.stack([np.asarray(read_image(folder / "images" / f"{n}.png")) for n in range(count)])
    return VisualQuestions(
        images=ArrayImages(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()),
        questions=texts,
        rows=torch.tensor(images)[:, None],
        labels=tuple({answer: 1.0} for answer in given),
        answers=answers,
        task="classes",
        kinds=tuple(map(kind_of, texts)),
    )
