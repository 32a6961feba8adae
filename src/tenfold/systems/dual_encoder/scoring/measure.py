"""A network's answers to questions, and how many are right, by kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.systems.dual_encoder.attention.readers import inputs_of
from tenfold.systems.dual_encoder.inputs.batches import QuestionTensors
from tenfold.systems.dual_encoder.scoring.vqa_accuracy import vqa_accuracy
from tenfold.systems.dual_encoder.sets.questions import VisualQuestions


@torch.inference_mode()
def predict_answers(
    network: nn.Module, tensors: QuestionTensors, batch_size: int = 256, forward: Callable[..., Tensor] | None = None
) -> np.ndarray:
    """Numbers of the likeliest answers, ``(n,)``.

    Args:
        network: in eval mode; takes a batch's inputs.
        tensors: the questions.
        batch_size: questions at a time.
        forward: gives scores of a batch, where it is not the network called with its inputs.
    """
    device = next(network.parameters()).device
    found = np.empty(len(tensors), np.int64)
    for rows, batch in tensors.in_order(batch_size):
        moved = {name: value.to(device) for name, value in batch.items()}
        scores = network(**inputs_of(moved)) if forward is None else forward(moved)
        found[rows.numpy()] = scores.argmax(-1).cpu().numpy()
    return found


def score_answers(data: VisualQuestions, chosen: np.ndarray) -> np.ndarray:
    """``(n,)`` score in [0, 1] of each chosen answer.

    The label's score of the answer; where ten people answered, VQA's official accuracy against them.

    Args:
        data: the questions.
        chosen: ``(n,)`` numbers of answers.
    """
    if data.annotations:
        return np.asarray(
            [
                vqa_accuracy(data.answers[number], people)
                for number, people in zip(chosen.tolist(), data.annotations, strict=True)
            ]
        )
    return np.asarray(
        [label.get(data.answers[number], 0.0) for number, label in zip(chosen.tolist(), data.labels, strict=True)]
    )


def summarize(data: VisualQuestions, scores: np.ndarray) -> dict[str, Any]:
    """Accuracy in points over all, by kind, and the consistency of groups.

    Args:
        data: the questions.
        scores: ``(n,)`` in [0, 1].

    Returns:
        ``accuracy``, ``kinds`` (by name), ``consistency`` (points; ``None`` without groups), ``rows`` (100 times the
        scores, one per question).
    """
    kinds = np.asarray(data.kinds)
    return {
        "accuracy": float(100 * scores.mean()),
        "kinds": {kind: float(100 * scores[kinds == kind].mean()) for kind in dict.fromkeys(data.kinds)},
        "consistency": consistency(data.groups, scores) if data.groups else None,
        "rows": [round(100 * float(score), 2) for score in scores],
    }


def consistency(groups: tuple[str, ...], scores: np.ndarray) -> float:
    """Points: share of groups of which every question is right (NLVR2, section 5).

    Args:
        groups: the group of each question.
        scores: ``(n,)``, 1 for right.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    wrong = np.bincount(place, weights=scores < 1, minlength=len(names))
    return float(100 * (wrong == 0).mean())
