"""``bench``: pairs of question and image per second of a run's student beside its teacher."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.systems.dual_encoder.checkpoints.official import sizes_of_state
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.index.throughput import measure_throughput
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.load import load, load_network
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder
from tenfold.systems.dual_encoder.sets.images import ArrayImages
from tenfold.systems.dual_encoder.sets.questions import VisualQuestions

_PAIRS = 32


def bench(
    run: str,
    *,
    teacher: str | None = None,
    questions: int = 16,
    images: int = 1000,
    batch_sizes: list[int] | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Pairs of question and image per second: teacher, student without and with cached images, many to many.

    Args:
        run: folder of a finished run.
        teacher: model folder of a fusion encoder; the run's own teacher where not given.
        questions: of the many-to-many case.
        images: of the many-to-many case.
        batch_sizes: of pairs; 1 and 32 where not given.
        repeats: timings of each way, of which the median counts.
    """
    sizes = batch_sizes or [1, _PAIRS]
    if min(questions, images, repeats, *sizes) < 1:
        raise UserError("questions, images, batch_sizes and repeats must be at least 1")
    answerer = load(run)
    network = load_network(teacher)[0] if teacher is not None else _teacher_of(run, answerer)
    if not isinstance(network, FusionEncoder):
        raise UserError(f"{printable(teacher)} holds no fusion encoder")
    return measure_throughput(
        answerer,
        network.eval(),
        drawn_questions(answerer, max(sizes)),
        questions=questions,
        images=images,
        batch_sizes=sizes,
        repeats=repeats,
    )


def _teacher_of(run: str, answerer: VisualAnswerer) -> FusionEncoder:
    path = next(iter(sorted(Path(run).glob("steps/*/teacher/seed*/weights.safetensors"))), None)
    if path is None or not hasattr(answerer.model.image_tower, "sizes"):
        raise UserError(f"{printable(run)} keeps no teacher: name a fusion encoder's model folder with --teacher")
    state = read_safetensors(path)
    heads = answerer.model.image_tower.sizes.heads
    found = FusionEncoder(Sizes(**asdict(sizes_of_state(state, heads))), len(state["classifier.3.bias"]))
    load_strictly(found, state, path)
    return found


def drawn_questions(answerer: VisualAnswerer, count: int) -> QuestionTensors:
    """Random pictures of the model's size, and questions of 2 to 6 of its words, padded to its limit.

    Args:
        answerer: the model.
        count: of pictures and questions.
    """
    shorter, patch = answerer.preparation.shorter, answerer.preparation.patch
    side, generator = shorter // patch * patch, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    words = [word for word in answerer.tokenizer.vocabulary if word.isalpha()]
    most = max(1, min(6, answerer.tokenizer.max_tokens - 2))
    lengths = torch.randint(min(2, most), most + 1, (count,), generator=generator).tolist()
    questions = tuple(" ".join(words[(n + k) % len(words)] for k in range(length)) for n, length in enumerate(lengths))
    images = answerer.model.images
    data = VisualQuestions(
        ArrayImages(pixels),
        questions,
        torch.arange(count)[:, None].expand(-1, images),
        ({},) * count,
        answerer.answers,
        answerer.task,
    )
    return QuestionTensors(data, answerer.tokenizer, answerer.preparation, length=answerer.tokenizer.max_tokens)
