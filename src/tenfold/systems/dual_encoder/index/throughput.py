"""Pairs of question and image per second: the fusion encoder, and the dual encoder in the ways it can be asked."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.dual_encoder.attention.readers import inputs_of
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors

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
    model, head = answerer.model, answerer.head
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for size in batch_sizes:
            rows = torch.arange(len(tensors))[:size]
            batch = tensors.batch(rows)
            given = inputs_of(batch)
            asked = [tensors.data.questions[row] for row in rows.tolist()]
            vectors = model.encode_images(batch["pixels"], batch.get("patch_mask"))
            ways: list[Callable[[], Tensor]] = [
                lambda given=given: teacher(**given),
                lambda given=given: model(**given),
                lambda batch=batch, vectors=vectors: model.combine(
                    model.encode_text(batch["text"], batch["text_mask"]), vectors
                ),
                lambda asked=asked, vectors=vectors: head(answerer.encode_questions(asked), vectors),
            ]
            for way, call in zip(WAYS, ways, strict=False):
                found[f"{way}, batch {len(rows)}"] = time_calls(call, len(rows), repeats)
        asked = list(dict.fromkeys(tensors.data.questions))[:questions]
        width = answerer.vector_shape
        many = torch.randn(images, *width, generator=torch.Generator().manual_seed(0))
        found[f"{WAYS[-1]}, {len(asked)} x {images}"] = time_calls(
            lambda: head.every_pair(answerer.encode_questions(asked), many), len(asked) * images, repeats
        )
    return found


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
