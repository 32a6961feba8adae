"""Relation distillation: the experiment, read from top to bottom.

Data, teacher (a masked autoencoder), the arms (from scratch, MAE on the student, class token, features, relations,
ablations), each pre-trained without labels and fine-tuned with the same budget, measurement on the test split,
comparison over seeds, delivery. Every function can be called on its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.data import Splits
from tenfold.export import save_model
from tenfold.parallel import rank
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.relation_distillation.attention.heads import heads_per_block
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import (
    few_per_class,
    load_images,
)
from tenfold.systems.relation_distillation.evaluation.accuracy import (
    accuracies,
    collect,
)
from tenfold.systems.relation_distillation.experiment.arms import ARMS, Arm, arms_of
from tenfold.systems.relation_distillation.experiment.comparison import (
    claims_of,
    metric_of,
    plots_of,
    summarise,
    tables_of,
)
from tenfold.systems.relation_distillation.experiment.pretraining import (
    labelled,
    make_classifier,
    make_student,
    make_task,
    make_teacher,
    pretrain_arm,
    save_weights,
    train_teacher,
)
from tenfold.systems.relation_distillation.experiment.settings import PRESETS, Config
from tenfold.systems.relation_distillation.training.finetune import finetune
from tenfold.systems.relation_distillation.vit.build import build_vit, largest_difference
from tenfold.systems.relation_distillation.vit.teachers import Teacher
from tenfold.systems.relation_distillation.vit.vision_transformer import load_backbone

__all__ = ["ARMS", "PRESETS", "Arm", "Config", "deliver", "evaluate_arm", "make_teacher", "pretrain_arm", "run"]


def run(config: Config, run: Run) -> Results:
    """Pre-train the teacher and all arms over all seeds, fine-tune, compare, deliver the student of ``relations``.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    splits = load_images(
        config.data.name, root=config.data.root, validation=config.data.validation,
        image_size=config.data.image_size, workers=config.data.workers,
        limit=config.data.limit,
    )  # fmt: skip
    check_arms(config, splits, arms)
    learnt = run.step("teacher", lambda folder: train_teacher(config, splits, folder, run))
    teacher = make_teacher(config, splits, run.folder / "steps/teacher/weights.safetensors")
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in range(config.seed, config.seed + config.seeds):
        for name, arm in arms.items():
            outcomes[name].append(run_arm(config, splits, name, arm, teacher, seed, run))
    lengths = measure_lengths(config, splits, arms, outcomes, run)
    delivered = run.step("delivery", lambda _: deliver(config, splits, teacher, outcomes["relations"][0], run))
    return Results(
        system="relation-distillation",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        claims=claims_of(outcomes, splits.name, lengths),
        metrics=summarise(outcomes, splits.name),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=splits.name,
            train_images=len(splits.train),
            labelled_images=len(labelled(config, splits).train),
        ),
        plots=plots_of(outcomes, splits.name, learnt["history"]),
        tables=tables_of(outcomes, splits.name, lengths),
        notes=[
            *splits.notes,
            f"The teacher ({learnt['source']}) is the same in all arms and seeds; its nearest neighbours are right for "
            f"{learnt['knn']:.1f} % of the test images." if learnt["knn"] is not None else "The teacher is given.",
            "All arms have the same student, the same budget of student updates and the same fine-tuning; no epoch is "
            "chosen, the last one counts. The test split is only measured.",
            "The cost is in multiply-adds of one image.",
        ],
    )  # fmt: skip


def run_arm(
    config: Config, splits: Splits, name: str, arm: Arm, teacher: Teacher, seed: int, run: Run
) -> dict[str, Any]:
    """Pre-train one student and fine-tune it on all and on few labels: the numbers of its steps."""
    # The arm that only fine-tunes in another way shares the pre-training.
    step = f"{'relations' if arm.uniform_heads else name}/seed{seed}/pretraining"
    found = run.step(step, lambda folder: pretrain_arm(config, splits, arm, teacher, seed, folder, run, step))
    weights = run.folder / "steps" / step / "weights.safetensors"
    outcome = dict(found)
    for labels in ("full", "few") if config.finetune.few_labels else ("full",):
        named = f"{name}/seed{seed}/{labels}"
        outcome |= run.step(
            named, partial(evaluate_arm, config, splits, arm, found, weights, seed, labels, run=run, step=named)
        )
    return outcome


def measure_lengths(
    config: Config, splits: Splits, arms: dict[str, Arm], outcomes: dict[str, list[dict[str, Any]]], run: Run
) -> dict[str, dict[int, float]]:
    """Test accuracy of the first seed of the arms ``scratch`` and ``mae`` by epochs of fine-tuning, in percent."""
    options = config.finetune
    if not options.longer:
        return {}
    longer = replace(config, finetune=replace(options, epochs=options.longer * options.epochs))
    found: dict[str, dict[int, float]] = {}
    for name in ("scratch", "mae"):
        if name in arms:
            first = outcomes[name][0]
            weights = run.folder / f"steps/{name}/seed{config.seed}/pretraining/weights.safetensors"
            step = f"{name}/seed{config.seed}/longer"
            again = run.step(
                step,
                partial(
                    evaluate_arm, longer, splits, arms[name], first, weights, config.seed, "full", run=run, step=step
                ),
            )
            found[name] = {
                epochs: outcome["full"]["test"][metric_of(splits.name)]
                for epochs, outcome in ((options.epochs, first), (longer.finetune.epochs, again))
            }
    return found


def check_arms(config: Config, splits: Splits, arms: dict[str, Arm]) -> None:
    """Build every arm once: what does not fit fails now, not after the teacher's training."""
    blank = make_teacher(config, splits, None)
    for arm in arms.values():
        make_task(config, splits, arm, blank, make_student(config, splits))
        make_classifier(config, splits, heads_per_block(make_student(config, splits)))


# --- fine-tuning and delivery ---------------------------------------------------------------------------------------


def evaluate_arm(
    config: Config, splits: Splits, arm: Arm, found: dict[str, Any], weights: Path, seed: int, labels: str,
    folder: Path, run: Run, step: str,
) -> dict[str, Any]:  # fmt: skip
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
        ``{labels: {"test": ..., "validation": ..., "head_reset": ..., "seconds": ...}}``; ``head_reset`` is by how much
        the tokens changed because a block got another number of heads than it was pre-trained with.
    """
    options = config.finetune
    torch.manual_seed(1000 + seed)
    uniform = config.student.finetune_heads == "uniform" if arm.uniform_heads is None else arm.uniform_heads
    heads = [config.student.heads] * len(found["heads"]) if uniform else found["heads"]
    classifier = make_classifier(config, splits, heads)
    state = load_file(weights)
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
            splits, options.batch_size, seed=seed, crop_scale=(options.crop_scale, 1.0), flip=config.data.flip,
            randaugment=options.randaugment, images=images,
        ),
        epochs=epochs,
        learning_rate=options.learning_rate,
        folder=folder,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        warmup_epochs=options.warmup_epochs,
        drop_path=options.drop_path,
        mixup=options.mixup,
        cutmix=options.cutmix,
        smoothing=options.smoothing,
        erase=options.erase,
        trainer=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, epochs, f"loss {row['train/loss']:.3f}"),
    )  # fmt: skip
    device = config.trainer.device
    measured = {
        part: accuracies(*collect(classifier, classifier, batches, device))
        for part, batches in (("test", splits.test_batches()), ("validation", splits.validation_batches()))
    }
    if rank() == 0:
        save_weights(classifier, folder / "weights.safetensors")
    return {
        labels: {**measured, "head_reset": moved, "heads": list(heads), "seconds": fitted.seconds,
                 "history": fitted.history}
    }  # fmt: skip


def build_student_like(config: Config, splits: Splits, heads: Sequence[int], state: dict[str, Tensor]) -> Any:
    """The pre-trained student again, with the head counts that it was trained with."""
    student = build_vit(
        config.student.name, image_size=splits.image_shape[-1], channels=splits.image_shape[0],
        patch=config.teacher.patch, width=config.student.width, depth=config.student.depth, heads=list(heads),
    )  # fmt: skip
    student.load_state_dict(state)
    return student.eval()


def deliver(config: Config, splits: Splits, teacher: Teacher, found: dict[str, Any], run: Run) -> dict[str, Any]:
    """Write the fine-tuned student of ``relations`` as the run's model, and the pre-trained one beside it."""
    base = run.folder / f"steps/relations/seed{config.seed}"
    heads = found["full"]["heads"]
    classifier = make_classifier(config, splits, heads)
    classifier.load_state_dict(load_file(base / "full/weights.safetensors"))
    classifier.eval()
    student = build_student_like(config, splits, found["heads"], load_file(base / "pretraining/weights.safetensors"))
    arguments = {
        "image_size": splits.image_shape[-1], "channels": splits.image_shape[0], "patch": config.teacher.patch,
        "width": config.student.width, "depth": config.student.depth,
    }  # fmt: skip
    shared = {
        "mean": list(splits.mean),
        "std": list(splits.std),
        "prefix_tokens": classifier.num_prefix_tokens,
        "pairs": list(config.distil.pairs),
        "student_layer": len(classifier.blocks),
        "teacher_layer": found["layer"],
        "teacher": teacher.source,
        "teacher_sha256": teacher.fingerprint,
    }
    if rank() == 0:
        save_model(
            run.folder / "pretrained", student, system="relation-distillation", builder=config.student.name,
            arguments=arguments | {"heads": found["heads"]}, extra=shared | {"untrained": found["untrained"]},
        )  # fmt: skip
        save_model(
            run.folder, classifier, system="relation-distillation", builder=config.student.name,
            arguments=arguments | {"heads": heads, "num_classes": len(splits.classes)},
            extra=shared | {"classes": list(splits.classes)},
        )  # fmt: skip
    return {
        "params": count_parameters(classifier),
        "flops": count_flops(classifier, splits.example(1), convention="multiply-adds"),
    }
