"""Pre-training without labels: the teacher as a masked autoencoder, then every arm's student."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.attention.heads import heads_per_block
from tenfold.cost import count_parameters
from tenfold.data import Batches, FileBatches, Splits, TensorBatches
from tenfold.files import atomic_path
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.run import Run
from tenfold.systems.relation_distillation.data.images import unlabelled_images
from tenfold.systems.relation_distillation.data.views import pretraining_batches
from tenfold.systems.relation_distillation.evaluation.accuracy import (
    collect,
    knn_accuracy,
    linear_accuracy,
    patch_features,
)
from tenfold.systems.relation_distillation.experiment.arms import Arm
from tenfold.systems.relation_distillation.experiment.settings import Config
from tenfold.systems.relation_distillation.method import RelationDistiller
from tenfold.systems.relation_distillation.training.epoch_log import Progress
from tenfold.systems.relation_distillation.training.feature_targets import FeatureDistiller
from tenfold.systems.relation_distillation.training.pretrain import (
    Pretraining,
    agreement_on,
    pretrain,
    pretrain_from_teacher,
)
from tenfold.systems.relation_distillation.vit.build import build_vit, pretraining_student
from tenfold.systems.relation_distillation.vit.masked_autoencoder import MAEDecoder, MaskedAutoencoder
from tenfold.systems.relation_distillation.vit.official_files import load_teacher_weights
from tenfold.systems.relation_distillation.vit.teachers import Teacher, fingerprint, load_transformers
from tenfold.systems.relation_distillation.vit.vision_transformer import set_drop_path
from tenfold.training import FitResult
from tenfold.training.parallel import rank, wait_for_all_ranks

# --- networks -------------------------------------------------------------------------------------------------------


def make_student(config: Config, splits: Splits, width: int | None = None) -> Any:
    """The student before pre-training, or a network between teacher and student, of another width."""
    return pretraining_student(
        config.student.name,
        image_size=splits.image_shape[-1],
        channels=splits.image_shape[0],
        patch=config.teacher.patch,
        width=width or config.student.width,
        depth=config.student.depth,
        heads=config.student.heads,
        arguments=config.student.arguments,
    )


def make_classifier(config: Config, splits: Splits, heads: Sequence[int]) -> Any:
    """The student with a classifier's head."""
    return build_vit(
        config.student.name,
        image_size=splits.image_shape[-1],
        channels=splits.image_shape[0],
        num_classes=len(splits.classes),
        patch=config.teacher.patch,
        width=config.student.width,
        depth=config.student.depth,
        heads=heads,
        arguments=config.student.arguments,
    )


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
        options.name,
        image_size=splits.image_shape[-1],
        channels=splits.image_shape[0],
        patch=options.patch,
        width=options.width,
        depth=options.depth,
        heads=options.heads[0] if len(options.heads) == 1 else options.heads,
        arguments=options.arguments,
    )
    if options.weights is not None:
        load_teacher_weights(network, options.weights)
    elif weights is not None:
        load_strictly(network, read_safetensors(weights), weights)
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
        fitted = pretrain(
            autoencoder,
            _unlabelled(config, splits, options.batch_size, config.seed),
            Pretraining(options.epochs, options.learning_rate, config.distil.weight_decay, options.warmup_epochs),
            folder=folder,
            inputs=lambda batch: batch[0],
            trainer=config.trainer,
            on_epoch=lambda epoch, row: run.progress("teacher", epoch, options.epochs, f"loss {row['train/loss']:.4f}"),
        )
        history = fitted.history
    knn = None
    if options.name != "transformers":
        knn = _neighbours(config, splits, teacher.network, block=-1)["knn"]
        if rank() == 0:
            save_weights(teacher.network, folder / "weights.safetensors")
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
    teacher.network.cpu()  # the arm before may have left it on a GPU; the example is on the CPU
    if arm.target == "none":
        return None
    if arm.target == "mae":
        return _autoencoder(config, student, options.mask_ratio)
    layer: Any = arm.teacher_layer or options.teacher_layer or "auto"
    if arm.target != "relations":
        auxiliary = _autoencoder(config, student, options.mask_ratio) if arm.reconstruct else None
        return FeatureDistiller(
            student,
            teacher.network,
            arm.target,  # type: ignore[arg-type]
            teacher_layer=layer,
            autoencoder=auxiliary,
            example=example,
        )
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
        teacher = distil_chain(config, splits, arm, teacher, seed, folder, run, step)
    torch.manual_seed(seed)
    student = make_student(config, splits)
    fitted, task = distil_student(config, splits, arm, teacher, student, seed, folder, run, step)
    agreement = {}
    if isinstance(task, RelationDistiller):
        agreement = agreement_on(task.to(config.trainer.device), splits, teacher, config.trainer.device)
    features = _neighbours(config, splits, student)
    student.cpu()
    if rank() == 0:
        save_weights(student, folder / "weights.safetensors")
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


def distil_student(
    config: Config,
    splits: Splits,
    arm: Arm,
    teacher: Teacher,
    student: Any,
    seed: int,
    folder: Path,
    run: Progress,
    step: str,
) -> tuple[FitResult | None, Any]:
    """Train a student in place by an arm's objective.

    Args:
        config: the settings.
        splits: the data.
        arm: the arm.
        teacher: what is copied.
        student: what learns.
        seed: of order and augmentation.
        folder: of checkpoints and the log of epochs; a training resumes from there.
        run: shows progress.
        step: its name.

    Returns:
        The training, and the module whose loss it minimised; ``None`` for both from scratch.
    """
    options, device = config.distil, config.trainer.device
    task = make_task(config, splits, arm, teacher, student)
    if task is None:
        return None, None
    set_drop_path(student, options.drop_path if arm.drop_path is None else arm.drop_path)

    def watch(module: nn.Module) -> dict[str, float]:
        found = agreement_on(module, splits, teacher, device) if isinstance(module, RelationDistiller) else {}
        return found | (validation_neighbours(config, splits, student) if options.watch_knn else {})

    schedule = Pretraining(options.epochs, options.learning_rate, options.weight_decay, options.warmup_epochs)
    shared: dict[str, Any] = {
        "folder": folder,
        "trainer": config.trainer,
        "validate": watch,
        "on_epoch": lambda epoch, row: run.progress(step, epoch, options.epochs, f"loss {row['train/loss']:.4f}"),
    }
    if arm.target == "mae":
        batches = _unlabelled(config, splits, options.batch_size, seed, views=options.views)
        fitted = pretrain(task, batches, schedule, inputs=lambda batch: batch[0], **shared)
    else:
        batches = _unlabelled(config, splits, options.batch_size, seed, jitter=config.data.jitter, views=options.views)
        fitted = pretrain_from_teacher(
            task, batches, schedule, splits=splits, teacher=teacher, cache_mb=options.cache_mb, **shared
        )
    set_drop_path(student, 0.0)
    return fitted, task


def distil_chain(
    config: Config, splits: Splits, arm: Arm, teacher: Teacher, seed: int, folder: Path, run: Progress, step: str
) -> Teacher:
    """Sequential distillation (section 3.3): each network learns from the one before and teaches the next."""
    for number, width in enumerate(config.distil.chain):
        torch.manual_seed(seed)
        between = make_student(config, splits, width)
        distil_student(config, splits, arm, teacher, between, seed, folder / f"stage{number}", run, step)
        source = f"{teacher.source}, then width {width}"
        teacher = Teacher(between.cpu().eval(), None, None, fingerprint(between), source)
    return teacher


def _unlabelled(
    config: Config, splits: Splits, batch_size: int, seed: int, *, jitter: float | None = None, views: int | None = None
) -> TensorBatches | FileBatches:
    """Batches of the images of pre-training, the labelled ones or others."""
    images = unlabelled_images(config.data.unlabelled) if config.data.unlabelled else None
    return pretraining_batches(
        splits,
        batch_size,
        seed=seed,
        crop_scale=(config.data.crop_scale, 1.0),
        flip=config.data.flip,
        jitter=jitter,
        images=images,
        views=views,
    )


def _autoencoder(config: Config, network: Any, mask_ratio: float) -> MaskedAutoencoder:
    options = config.teacher
    return MaskedAutoencoder(
        network,
        mask_ratio=mask_ratio,
        decoder_width=options.decoder_width,
        decoder_depth=options.decoder_depth,
        decoder_heads=options.decoder_heads,
        normalize=options.normalize_pixels,
    )


def _decoder(config: Config, network: Any) -> MAEDecoder:
    options = config.teacher
    return MAEDecoder(
        network,
        width=options.decoder_width,
        depth=options.decoder_depth,
        heads=options.decoder_heads,
        normalize=options.normalize_pixels,
    )


def _layer_of(task: Any) -> int | None:
    if isinstance(task, RelationDistiller):
        return task.layers[0][1]
    return task.teacher_layer if isinstance(task, FeatureDistiller) else None


def _neighbours(config: Config, splits: Splits, network: Any, block: int = -2) -> dict[str, float]:
    """k-NN and linear accuracy of frozen features on the test images; of at most 10,000 training images."""
    train, test = (
        _features(config, network, batches, block)
        for batches in (labelled(config, splits).plain_training_batches(), splits.test_batches())
    )
    return {"knn": knn_accuracy(*train, *test), "linear": linear_accuracy(*train, *test)}


def validation_neighbours(config: Config, splits: Splits, network: Any) -> dict[str, float]:
    """k-NN accuracy of frozen features on the validation images."""
    train, held = (
        _features(config, network, batches, -2)
        for batches in (labelled(config, splits).plain_training_batches(), splits.validation_batches())
    )
    return {"knn": knn_accuracy(*train, *held)}


def _features(config: Config, network: Any, batches: Batches, block: int) -> tuple[Tensor, Tensor]:
    return collect(lambda images: patch_features(network, images, block), network, batches, config.trainer.device)


def labelled(config: Config, splits: Splits) -> Splits:
    """The splits with those training images alone whose labels are used."""
    count = config.finetune.labels
    if count is None or count >= len(splits.train):
        return splits
    return replace(splits, train=splits.train.subset(range(count)))


def save_weights(module: nn.Module, path: Path) -> None:
    """A state dict as safetensors."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, temporary)
