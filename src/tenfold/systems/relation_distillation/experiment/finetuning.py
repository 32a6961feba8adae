"""Fine-tuning and measurement of a pre-trained student, the same in every arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.data import Splits
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.run import Run
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import (
    few_per_class,
)
from tenfold.systems.relation_distillation.evaluation.accuracy import (
    accuracies,
    collect,
    scores,
)
from tenfold.systems.relation_distillation.experiment.arms import Arm
from tenfold.systems.relation_distillation.experiment.comparison import (
    metric_of,
)
from tenfold.systems.relation_distillation.experiment.pretraining import (
    labelled,
    make_classifier,
    save_weights,
)
from tenfold.systems.relation_distillation.experiment.settings import Config
from tenfold.systems.relation_distillation.training.finetune import Finetuning, finetune
from tenfold.systems.relation_distillation.vit.build import build_vit, largest_difference
from tenfold.systems.relation_distillation.vit.vision_transformer import load_backbone
from tenfold.training.parallel import rank


def evaluate_arm(
    config: Config,
    splits: Splits,
    arm: Arm,
    found: dict[str, Any],
    weights: Path,
    seed: int,
    labels: str,
    folder: Path,
    run: Run,
    step: str,
) -> dict[str, Any]:
    """Fine-tune a pre-trained student and measure it.

    Args:
        config: the settings.
        splits: the data.
        arm: the arm.
        found: what `pretrain_arm` gave.
        weights: what it wrote.
        seed: of head, order and augmentation.
        labels: ``full``, or ``few`` of each class.
        folder: of checkpoints.
        run: for progress.
        step: its name.

    Returns:
        ``{labels: {...}}`` with ``test`` and ``validation`` accuracies, ``scores`` per test image, ``head_reset`` (by
        how much the tokens changed because a block got another number of heads than it was pre-trained with),
        ``seconds`` and ``history``.
    """
    options = config.finetune
    torch.manual_seed(1000 + seed)
    uniform = config.student.finetune_heads == "uniform" if arm.uniform_heads is None else arm.uniform_heads
    heads = [config.student.heads] * len(found["heads"]) if uniform else found["heads"]
    classifier = make_classifier(config, splits, heads)
    state = read_safetensors(weights)
    load_backbone(classifier, state)
    pretrained = build_student_like(config, splits, found["heads"], state)
    moved = largest_difference(pretrained, classifier, splits.example(1))
    images = labelled(config, splits).train
    if labels == "few":
        images = few_per_class(images, options.few_labels, seed)
    epochs = options.epochs if labels == "full" else options.few_epochs
    fitted = finetune(
        classifier,
        finetuning_batches(
            splits,
            options.batch_size,
            seed=seed,
            crop_scale=(options.crop_scale, 1.0),
            flip=config.data.flip,
            randaugment=options.randaugment,
            images=images,
        ),
        Finetuning(
            epochs,
            options.learning_rate,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
            warmup_epochs=options.warmup_epochs,
            drop_path=options.drop_path,
            mixup=options.mixup,
            cutmix=options.cutmix,
            smoothing=options.smoothing,
            erase=options.erase,
        ),
        folder=folder,
        trainer=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, epochs, f"loss {row['train/loss']:.3f}"),
    )
    device = config.trainer.device
    on_test, on_validation = (
        collect(classifier, classifier, batches, device)
        for batches in (splits.test_batches(), splits.validation_batches())
    )
    measured = {
        "test": accuracies(*on_test),
        "validation": accuracies(*on_validation),
        "scores": scores(*on_test, metric_of(splits.name)).tolist(),
    }
    if rank() == 0:
        save_weights(classifier, folder / "weights.safetensors")
    return {
        labels: {
            **measured,
            "head_reset": moved,
            "heads": list(heads),
            "seconds": fitted.seconds,
            "history": fitted.history,
        }
    }


def build_student_like(config: Config, splits: Splits, heads: Sequence[int], state: dict[str, Tensor]) -> Any:
    """The pre-trained student again, with the head counts that it was trained with."""
    student = build_vit(
        config.student.name,
        image_size=splits.image_shape[-1],
        channels=splits.image_shape[0],
        patch=config.teacher.patch,
        width=config.student.width,
        depth=config.student.depth,
        heads=list(heads),
        arguments=config.student.arguments,
    )
    load_strictly(student, state, "the weights of the pre-training")
    return student.eval()
