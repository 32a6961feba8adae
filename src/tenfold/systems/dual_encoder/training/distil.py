"""``distil_dual_encoder``: any fusion teacher into any two towers, on images and questions without labels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tenfold.attention.layers import attention_layers
from tenfold.systems.dual_encoder.attention.readers import SingleStream, TwoTowers
from tenfold.systems.dual_encoder.inputs.batches import Augment, QuestionBatches, QuestionTensors
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.method import CrossModalAttentionLoss, DistillationObjective, LossWeights
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.sets.questions import VisualQuestions
from tenfold.systems.dual_encoder.training.optimizers import adamw, parameter_groups, warmup_linear
from tenfold.training import FitResult, TrainerOptions, fit


def distil_dual_encoder(
    student: DualEncoder,
    teacher: nn.Module | Any,
    data: VisualQuestions,
    tokenizer: QuestionTokenizer,
    preparation: ImagePreparation,
    *,
    steps: int,
    folder: str | Path,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    classifier_factor: float = 1.0,
    weights: LossWeights | None = None,
    attention: CrossModalAttentionLoss | None = None,
    layers: Sequence[tuple[int, int]] = ((-1, -1),),
    teacher_tokenizer: QuestionTokenizer | None = None,
    augment: Augment | None = None,
    seed: int = 0,
    trainer: TrainerOptions | None = None,
) -> FitResult:
    """Train a dual encoder from a fusion encoder; a training that was stopped goes on from its folder.

    The labels of ``data`` are not looked at unless ``weights.hard`` asks for them.

    Args:
        student: trained in place; left in eval mode.
        teacher: a module that takes ``text``, ``text_mask``, ``pixels``, ``patch_mask`` and runs them as one sequence,
            as ``FusionEncoder`` does; or a reader of one's own (see ``CrossAttention``).
        data: questions and images; their list of answers is the teacher's.
        tokenizer: of the student.
        preparation: of the images, for both.
        steps: optimizer steps.
        folder: for checkpoints.
        batch_size: questions of a step.
        learning_rate: at its peak, after a warm-up of a tenth of the steps.
        classifier_factor: times the rate, for the head.
        weights: of the parts of the loss; as published where ``None``.
        attention: see ``CrossModalAttentionLoss``; the relation heads are the largest number that divides both widths,
            at most the teacher's own, where heads differ and none is given.
        layers: pairs of the student's and the teacher's layers, from 1 or with -1 as the last.
        teacher_tokenizer: of the teacher, where it is another; then set the weight of attention to 0.
        augment: changes the images, as ``rand_augment``.
        seed: of the order of the questions.
        trainer: where it runs.

    Raises:
        UserError: heads, tokens or layers of the two do not fit, or a question is too long.
    """
    reader = SingleStream(teacher, [theirs for _, theirs in layers]) if isinstance(teacher, nn.Module) else teacher
    if isinstance(teacher, nn.Module):
        teacher.requires_grad_(False)
    attention = attention or CrossModalAttentionLoss(heads=common_heads(student, teacher))
    objective = DistillationObjective(
        TwoTowers([ours for ours, _ in layers]), reader, data.task, weights or LossWeights(), attention
    )
    tensors = QuestionTensors(data, tokenizer, preparation, teacher_tokenizer=teacher_tokenizer)
    epochs = max(1, round(steps * min(batch_size, len(tensors)) / len(tensors)))
    batches = QuestionBatches(tensors, batch_size, seed=seed, augment=augment, epoch_batches=math.ceil(steps / epochs))
    return fit(
        student,
        objective,
        batches,
        epochs=epochs,
        optimizer=adamw(parameter_groups(student, learning_rate, 0.01, classifier_factor)),
        schedule=warmup_linear(epochs * len(batches)),
        folder=folder,
        options=trainer or TrainerOptions(),
    )


def common_heads(student: DualEncoder, teacher: Any) -> int | None:
    """Relation heads for a teacher and towers whose last layers have unequal heads; ``None`` where they are equal.

    Args:
        student: the dual encoder.
        teacher: a module, or a reader, of which nothing is known.
    """
    if not isinstance(teacher, nn.Module):
        return None
    found = [attention_layers(part) for part in (student.text_tower, student.image_tower, teacher)]
    if not all(found):
        return None
    text, image, theirs = (layers[-1] for layers in found)
    if text.heads == image.heads == theirs.heads:
        return None
    limit = math.gcd(text.width, image.width, theirs.width)
    return next(count for count in range(min(theirs.heads, limit), 0, -1) if limit % count == 0)
