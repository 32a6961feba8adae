"""What cached images cost in exactness: split and merged layers, and smaller numbers on disk."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.index.manifest import Kind
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.scoring.measure import score_answers


@torch.inference_mode()
def cache_difference(answerer: VisualAnswerer, tensors: QuestionTensors, count: int) -> float:
    """Largest difference of scores between the model's forward pass and cached vectors with split and merged layers.

    Args:
        answerer: the model as it is served.
        tensors: questions.
        count: of the first questions that are compared.
    """
    rows = torch.arange(min(count, len(tensors)))
    batch = tensors.batch(rows)
    direct = answerer.model(batch["text"], batch["text_mask"], batch["pixels"], batch.get("patch_mask"))
    questions = [tensors.data.questions[row] for row in rows.tolist()]
    vectors = answerer.model.encode_images(batch["pixels"], batch.get("patch_mask"))
    cached = answerer.head(answerer.encode_questions(questions), vectors)
    return float((direct - cached).abs().max())


@torch.inference_mode()
def cost_of_kinds(answerer: VisualAnswerer, tensors: QuestionTensors) -> dict[str, dict[str, Any]]:
    """For each kind of numbers an index may hold: bytes per image, and accuracy of the questions' answers through it.

    Args:
        answerer: the model as it is served.
        tensors: questions.
    """
    vectors = torch.cat(
        [answerer.model.encode_images(b["pixels"], b.get("patch_mask")) for _, b in tensors.in_order(256)]
    )
    texts = answerer.encode_questions(tensors.data.questions)
    names = [str(number) for number in range(len(vectors))]
    found = {}
    for kind in get_args(Kind):
        with TemporaryDirectory() as folder:
            index = VisualIndex.create(Path(folder) / "index", answerer.fingerprint, answerer.vector_shape, kind)
            index.add(names, vectors)
            chosen = answerer.head(texts, index.vectors(names)).argmax(-1).numpy()
            found[kind] = {
                "bytes_per_image": index.nbytes // len(vectors),
                "accuracy": float(100 * score_answers(tensors.data, chosen).mean()),
            }
    return found
