"""Pairs of question and image per second: the fusion encoder, and the dual encoder in the ways it can be asked."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.dual_encoder.attention.readers import inputs_of
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder

WAYS = (
    "fusion",
    "dual, no cache",
    "dual, cached images",
    "dual, cached, no padding, merged head",
    "dual, every question x every cached image",
)
"""What is timed. Without a cache a dual encoder reads the same tokens as the teacher, and is about as slow."""


def measure_throughput(
    answerer: VisualAnswerer,
    teacher: nn.Module,
    tensors: QuestionTensors,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    questions: int = 16,
    images: int = 1000,
    repeats: int = 5,
) -> dict[str, Any]:
    """Median times of the ways to answer, in one process, one after the other, after a warm-up.

    Args:
        answerer: the dual encoder as it is served.
        teacher: the fusion encoder, in eval mode.
        tensors: questions; the first of them are timed.
        batch_sizes: of pairs.
        questions: of the many-to-many case.
        images: of the many-to-many case; as many vectors as there are.
        repeats: timings of each way, of which the median counts.

    Returns:
        For each way and batch size ``pairs_per_second`` (``median``, ``low``, ``high``) and ``milliseconds``
        (``median``, ``p95``) of a batch; the first two ways include the encoding of images, the others do not.
    """
    model = answerer.model
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for size in batch_sizes:
            rows = torch.arange(len(tensors))[:size]
            batch = tensors.batch(rows)
            given = inputs_of(batch)
            asked = [tensors.data.questions[row] for row in rows.tolist()]
            vectors = model.encode_images(batch["pixels"], batch.get("patch_mask"))
            text = (batch["text"], batch["text_mask"])
            ways: list[Callable[[], Tensor]] = [
                partial(teacher, **given),
                partial(model, **given),
                partial(_from_vectors, model, text, vectors),
                partial(_served, answerer, asked, vectors),
            ]
            for way, call in zip(WAYS, ways, strict=False):
                found[f"{way}, batch {len(rows)}"] = time_calls(call, len(rows), repeats)
        asked = list(dict.fromkeys(tensors.data.questions))[:questions]
        width = answerer.vector_shape
        many = torch.randn(images, *width, generator=torch.Generator().manual_seed(0))
        found[f"{WAYS[-1]}, {len(asked)} x {images}"] = time_calls(
            lambda: answerer.head.every_pair(answerer.encode_questions(asked), many), len(asked) * images, repeats
        )
    return found


def _from_vectors(model: DualEncoder, text: tuple[Tensor, Tensor], vectors: Tensor) -> Tensor:
    return model.combine(model.encode_text(*text), vectors)


def _served(answerer: VisualAnswerer, questions: list[str], vectors: Tensor) -> Tensor:
    return answerer.head(answerer.encode_questions(questions), vectors)


def time_calls(call: Callable[[], Any], pairs: int, repeats: int) -> dict[str, Any]:
    """Time a call after one that does not count.

    Args:
        call: the work; a GPU is waited for.
        pairs: questions with images that it answers.
        repeats: timings.
    """
    seconds = []
    for _ in range(repeats + 1):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[1:])
    late = timed[min(len(timed) - 1, round(0.95 * (len(timed) - 1)))]
    return {
        "pairs_per_second": {
            "median": pairs / statistics.median(timed),
            "low": pairs / timed[-1],
            "high": pairs / timed[0],
        },
        "milliseconds": {"median": 1000 * statistics.median(timed), "p95": 1000 * late},
    }


def wait() -> None:
    """Wait for what a GPU has been given to do."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
