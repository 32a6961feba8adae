"""``ask`` and ``search``: questions about images that an index holds."""

import json
import sys
from typing import Any

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.dual_encoder.index.answerer import Answer, VisualAnswerer
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.load import load


def ask(
    run: str,
    index: str,
    question: str,
    *,
    images: list[str] | None = None,
    top_k: int = 1,
    factory: str | None = None,
) -> str:
    """The likeliest answers to a question about each image of an index, one JSON line each.

    Args:
        run: folder of a run or model.
        index: folder of its index.
        question: the question.
        images: names of images; of a model of pairs, an even number of them, two by two; all of the index where not
            given.
        top_k: answers for each image.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    _positive(top_k)
    answerer = load(run, factory=factory)
    ids: list[Any] | None = images
    if images is not None and answerer.model.images == 2:
        if len(images) % 2:
            raise UserError(f"this model is asked about pairs of images; got {len(images)} names")
        ids = list(zip(images[::2], images[1::2], strict=True))
    if ids is None and answerer.model.images == 2:
        raise UserError("this model is asked about pairs of images: name them with --images")
    found = answerer.answer(question, VisualIndex.open(index), ids, top_k)
    say_unknown(answerer, [question])
    return "\n".join(line for answers in found for line in map(_line, answers))


def search(
    run: str,
    index: str,
    question: str,
    *,
    answer: str = "yes",
    top_k: int = 10,
    factory: str | None = None,
) -> str:
    """The images of an index for which an answer is likeliest, one JSON line each, the likeliest first.

    Args:
        run: folder of a run or model.
        index: folder of its index.
        question: the question.
        answer: of the model's list.
        top_k: images.
        factory: package.module:function that may make the model, where it is one of your own.
    """
    _positive(top_k)
    answerer = load(run, factory=factory)
    found = answerer.search(question, VisualIndex.open(index), answer, top_k)
    say_unknown(answerer, [question])
    return "\n".join(map(_line, found[0]))


def say_unknown(answerer: VisualAnswerer, questions: list[str]) -> None:
    """Say on the console which words the model has never seen."""
    unknown = answerer.unknown_words(questions)
    if unknown:
        words = ", ".join(printable(word, 30) for word in unknown[:8])
        print(f"the model has never seen: {words}; it reads them all alike", file=sys.stderr)


def _positive(top_k: int) -> None:
    if top_k < 1:
        raise UserError(f"top_k must be at least 1; got {top_k}")


def _line(found: Answer) -> str:
    return json.dumps(
        {"image": found.image, "answer": found.answer, "probability": round(found.probability, 6)}, ensure_ascii=False
    )
