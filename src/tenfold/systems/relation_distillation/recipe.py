"""Relation distillation: the experiment, read from top to bottom.

Data, teacher (a masked autoencoder), the arms (from scratch, MAE on the student, class token, features, relations,
ablations), each pre-trained without labels and fine-tuned with the same budget, measurement on the test split,
comparison over seeds, delivery. Every function can be called on its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.data import Splits
from tenfold.export import save_model
from tenfold.parallel import rank, wait_for_all_ranks
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.relation_distillation.alignment import heads_per_block
from tenfold.systems.relation_distillation.checkpoints import load_teacher_weights
from tenfold.systems.relation_distillation.comparison import claims_of, plots_of, summarise, tables_of
from tenfold.systems.relation_distillation.data import (
    few_per_class,
    load_images,
    pretraining_batches,
    renormalised,
    unlabelled_images,
)
from tenfold.systems.relation_distillation.finetune import finetune, finetuning_batches
from tenfold.systems.relation_distillation.mae import MAEDecoder, MaskedAutoencoder
from tenfold.systems.relation_distillation.method import RelationDistiller
from tenfold.systems.relation_distillation.metrics import (
    accuracies,
    collect,
    knn_accuracy,
    linear_accuracy,
    patch_features,
)
from tenfold.systems.relation_distillation.model import load_backbone, set_drop_path
from tenfold.systems.relation_distillation.networks import (
    Teacher,
    build_vit,
    fingerprint,
    largest_difference,
    load_transformers,
    pretraining_student,
)
from tenfold.systems.relation_distillation.optimisers import adamw, cosine_schedule, parameter_groups
from tenfold.systems.relation_distillation.settings import ARMS, PRESETS, Arm, Config, arms_of
from tenfold.systems.relation_distillation.targets import FeatureDistiller
from tenfold.training import FitResult, fit

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
            # The arm that only fine-tunes in another way shares the pre-training.
            step = f"{'relations' if arm.uniform_heads else name}/seed{seed}/pretraining"
            found = run.step(step, lambda folder: pretrain_arm(config, splits, arm, teacher, seed, folder, run, step))  # noqa: B023
            weights = run.folder / "steps" / step / "weights.safetensors"
            for labels in ("full", "few"):
                if labels == "few" and not config.finetune.few_labels:
                    continue
                step_two = f"{name}/seed{seed}/{labels}"
                found |= run.step(
                    step_two,
                    lambda folder: evaluate_arm(
                        config, splits, arm, found, weights, seed, labels, folder, run, step_two
                    ),
                )
            outcomes[name].append(found)
    delivered = run.step("delivery", lambda _: deliver(config, splits, teacher, outcomes["relations"][0], run))
    return Results(
        system="relation-distillation",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        claims=claims_of(outcomes, splits.name),
        metrics=summarise(outcomes, splits.name),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(config.trainer.device.type, data=splits.name, train_images=len(splits.train)),
        plots=plots_of(outcomes, splits.name, learnt["history"]),
        tables=tables_of(outcomes, splits.name),
        notes=[
            *splits.notes,
            f"The teacher ({learnt['source']}) is the same in all arms and seeds; its nearest neighbours are right for "
            f"{learnt['knn']:.1f} % of the test images." if learnt["knn"] is not None else "The teacher is given.",
            "All arms have the same student, the same budget of student updates and the same fine-tuning; no epoch is "
            "chosen, the last one counts. The test split is only measured.",
            "The cost is in multiply-adds of one image.",
        ],
    )  # fmt: skip


def check_arms(config: Config, splits: Splits, arms: dict[str, Arm]) -> None:
    """Build every arm once: what does not fit fails now, not after the teacher's training."""
    blank = make_teacher(config, splits, None)
    for arm in arms.values():
        make_task(config, splits, arm, blank, make_student(config, splits))
        make_classifier(config, splits, heads_per_block(make_student(config, splits)))


# --- networks -------------------------------------------------------------------------------------------------------


def make_student(config: Config, splits: Splits, width: int | None = None) -> Any:
    """The student before pre-training, or a network between teacher and student, of another width."""
    return pretraining_student(
        config.student.name, image_size=splits.image_shape[-1], channels=splits.image_shape[0],
        patch=config.teacher.patch, width=width or config.student.width, depth=config.student.depth,
        heads=config.student.heads,
    )  # fmt: skip


def make_classifier(config: Config, splits: Splits, heads: Sequence[int]) -> Any:
    """The student with a classifier's head."""
    return build_vit(
        config.student.name, image_size=splits.image_shape[-1], channels=splits.image_shape[0],
        num_classes=len(splits.classes), patch=config.teacher.patch, width=config.student.width,
        depth=config.student.depth, heads=heads,
    )  # fmt: skip


def make_teacher(config: Config, splits: Splits, weights: Path | None) -> Teacher:
    """The teacher of the settings, in eval mode.

    Args:
        config: the settings; they may name weights.
        splits: the data.
        weights: those of a teacher that was trained here; untrained where ``None``.
    """
    options = config.teacher
    mean = None if options.mean is None else tuple(options.mean)
    std = None if options.std is None else tuple(options.std)
    if options.name == "transformers":
        network = load_transformers(options.weights)
        return Teacher(network, mean, std, fingerprint(network), f"transformers, {options.weights}")
    network = build_vit(
        options.name, image_size=splits.image_shape[-1], channels=splits.image_shape[0], patch=options.patch,
        width=options.width, depth=options.depth,
        heads=options.heads[0] if len(options.heads) == 1 else options.heads,
    )  # fmt: skip
    if options.weights is not None:
        load_teacher_weights(network, options.weights)
    elif weights is not None:
        network.load_state_dict(load_file(weights))
    source = options.weights or f"masked autoencoder trained here for {options.epochs} epochs"
    return Teacher(network.eval(), mean, std, fingerprint(network), source)


# --- pre-training ---------------------------------------------------------------------------------------------------


def train_teacher(config: Config, splits: Splits, folder: Path, run: Run) -> dict[str, Any]:
    """Pre-train the teacher as a masked autoencoder, unless it has weights; write them, and measure it."""
    options = config.teacher
    torch.manual_seed(config.seed)
    teacher = make_teacher(config, splits, None)
    history: list[dict[str, float]] = []
    if options.weights is None:
        network = teacher.network.train()
        network.pos_embed.requires_grad_(False)
        autoencoder = _autoencoder(config, network, options.mask_ratio)
        fitted = _fit_unlabelled(
            config, splits, autoencoder, lambda batch: batch[0], seed=config.seed, epochs=options.epochs,
            batch_size=options.batch_size, learning_rate=options.learning_rate, warmup=options.warmup_epochs,
            folder=folder, run=run, step="teacher", jitter=None,
        )  # fmt: skip
        history = fitted.history
    knn = None
    if options.name != "transformers":
        knn = _neighbours(config, splits, teacher.network, block=-1)["knn"]
        if rank() == 0:
            _save(teacher.network, folder / "weights.safetensors")
        wait_for_all_ranks()
    return {"history": history, "knn": knn, "source": teacher.source, "params": count_parameters(teacher.network)}


def make_task(config: Config, splits: Splits, arm: Arm, teacher: Teacher, student: Any) -> Any:
    """The module whose forward pass is an arm's loss, or ``None`` from scratch.

    Args:
        config: the settings.
        splits: the data.
        arm: the arm.
        teacher: what is copied; its network's drop path is set here.
        student: what learns, in place.
    """
    options, example = config.distil, splits.example(2)
    if arm.target == "none":
        return None
    if arm.target == "mae":
        return _autoencoder(config, student, options.mask_ratio)
    layer = arm.teacher_layer or options.teacher_layer or "auto"
    if arm.target != "relations":
        auxiliary = _autoencoder(config, student, options.mask_ratio) if arm.reconstruct else None
        return FeatureDistiller(
            student, teacher.network, arm.target, teacher_layer=layer, autoencoder=auxiliary, example=example  # type: ignore[arg-type]
        )  # fmt: skip
    if arm.teacher_drop_path:
        set_drop_path(teacher.network, arm.teacher_drop_path)
    elif config.teacher.name == "vit":
        set_drop_path(teacher.network, 0.0)
    decoder = _decoder(config, student) if arm.reconstruct else None
    return RelationDistiller(
        student,
        teacher.network,
        arm.pairs or options.pairs,
        teacher_layer=layer,
        heads=arm.heads if arm.heads is not None else options.heads,  # type: ignore[arg-type]
        kernel=options.kernel,
        softmax=arm.softmax,
        mask_ratio=options.mask_ratio if arm.masked else 0.0,
        decoder=decoder,
        teacher_training=arm.teacher_drop_path > 0,
        example=example,
    )


def pretrain_arm(
    config: Config, splits: Splits, arm: Arm, teacher: Teacher, seed: int, folder: Path, run: Run, step: str
) -> dict[str, Any]:
    """Pre-train one student without labels, write its weights, and measure its features.

    The initial weights and the order of the images depend on the seed only, so that arms are paired.

    Returns:
        ``history``, ``heads`` (per block), ``untrained`` (modules that no gradient reached), ``agreement``, ``knn``,
        ``linear``, ``seconds``, ``images_per_second``.
    """
    if arm.chained:
        teacher = _chain(config, splits, arm, teacher, seed, folder, run, step)
    torch.manual_seed(seed)
    student = make_student(config, splits)
    fitted, task = _distil(config, splits, arm, teacher, student, seed, folder, run, step)
    agreement = {}
    if isinstance(task, RelationDistiller):
        images = next(iter(splits.validation_batches(64)))[0].to(config.trainer.device)
        theirs = renormalised(images, splits, teacher.mean or splits.mean, teacher.std or splits.std)
        agreement = task.to(config.trainer.device).eval().agreement((images, theirs))
    features = _neighbours(config, splits, student)
    student.cpu()
    if rank() == 0:
        _save(student, folder / "weights.safetensors")
    wait_for_all_ranks()
    seconds = fitted.seconds if fitted else 0.0
    seen = fitted.steps * config.distil.batch_size if fitted else 0
    return {
        "history": fitted.history if fitted else [],
        "heads": heads_per_block(student),
        "untrained": list(getattr(task, "untrained", [])),
        "layer": _layer_of(task),
        "agreement": agreement,
        "pretraining_seconds": seconds,
        "images_per_second": seen / seconds if seconds else None,
        **features,
    }


def _distil(
    config: Config, splits: Splits, arm: Arm, teacher: Teacher, student: Any, seed: int, folder: Path, run: Run,
    step: str,
) -> tuple[FitResult | None, Any]:  # fmt: skip
    options = config.distil
    task = make_task(config, splits, arm, teacher, student)
    if task is None:
        return None, None
    relations = arm.target != "mae"
    set_drop_path(student, options.drop_path if arm.drop_path is None else arm.drop_path)

    def views(batch: Sequence[Tensor]) -> Any:
        if not relations:
            return batch[0]
        ours, clean = batch[0].unbind(1)
        return ours, renormalised(clean, splits, teacher.mean or splits.mean, teacher.std or splits.std)

    fitted = _fit_unlabelled(
        config, splits, task, views, seed=seed, epochs=options.epochs, batch_size=options.batch_size,
        learning_rate=options.learning_rate, warmup=options.warmup_epochs, folder=folder, run=run, step=step,
        jitter=config.data.jitter if relations else None,
    )  # fmt: skip
    set_drop_path(student, 0.0)
    return fitted, task


def _chain(
    config: Config, splits: Splits, arm: Arm, teacher: Teacher, seed: int, folder: Path, run: Run, step: str
) -> Teacher:
    """Sequential distillation (section 3.3): each network in between learns from the one before and teaches the next."""
    for number, width in enumerate(config.distil.chain):
        torch.manual_seed(seed)
        between = make_student(config, splits, width)
        _distil(config, splits, arm, teacher, between, seed, folder / f"stage{number}", run, step)
        source = f"{teacher.source}, then width {width}"
        teacher = Teacher(between.cpu().eval(), None, None, fingerprint(between), source)
    return teacher


def _fit_unlabelled(
    config: Config, splits: Splits, task: nn.Module, views: Any, *, seed: int, epochs: int, batch_size: int,
    learning_rate: float, warmup: float, folder: Path, run: Run, step: str, jitter: float | None,
) -> FitResult:  # fmt: skip
    images = unlabelled_images(config.data.unlabelled) if config.data.unlabelled else None
    batches = pretraining_batches(
        splits, batch_size, seed=seed, crop_scale=(config.data.crop_scale, 1.0), flip=config.data.flip, jitter=jitter,
        images=images,
    )  # fmt: skip

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = model(views(batch))
        return losses["loss"], {name: value for name, value in losses.items() if name != "loss"}

    groups = parameter_groups(
        task.named_parameters(), learning_rate=learning_rate, weight_decay=config.distil.weight_decay,
        decay_tokens=True,
    )  # fmt: skip
    return fit(
        task,
        objective,
        batches,
        epochs=epochs,
        optimiser=adamw(groups, (0.9, 0.95)),
        schedule=cosine_schedule(epochs=epochs, steps=len(batches), warmup=min(warmup, epochs / 2)),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, epochs, f"loss {row['train/loss']:.4f}"),
    )


def _autoencoder(config: Config, network: Any, mask_ratio: float) -> MaskedAutoencoder:
    options = config.teacher
    return MaskedAutoencoder(
        network, mask_ratio=mask_ratio, decoder_width=options.decoder_width, decoder_depth=options.decoder_depth,
        decoder_heads=options.decoder_heads, normalise=options.normalise_pixels,
    )  # fmt: skip


def _decoder(config: Config, network: Any) -> MAEDecoder:
    options = config.teacher
    return MAEDecoder(
        network, width=options.decoder_width, depth=options.decoder_depth, heads=options.decoder_heads,
        normalise=options.normalise_pixels,
    )  # fmt: skip


def _layer_of(task: Any) -> int | None:
    if isinstance(task, RelationDistiller):
        return task.layers[0][1]
    return task.teacher_layer if isinstance(task, FeatureDistiller) else None


def _neighbours(config: Config, splits: Splits, network: Any, block: int = -2) -> dict[str, float]:
    """k-NN and linear accuracy of frozen features; of at most 10,000 training images."""
    device = config.trainer.device

    def features(images: Tensor) -> Tensor:
        return patch_features(network, images, block)

    train = collect(features, network, splits.plain_training_batches(), device)
    test = collect(features, network, splits.test_batches(), device)
    return {"knn": knn_accuracy(*train, *test), "linear": linear_accuracy(*train, *test)}


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
        found: what :func:`pretrain_arm` gave.
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
    images = splits.train if labels == "full" else few_per_class(splits.train, options.few_labels, seed)
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
        _save(classifier, folder / "weights.safetensors")
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


def _save(module: nn.Module, path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, path)
