"""Settings of the experiment: options, arms, presets."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.training import TrainerOptions


@dataclass
class DataOptions:
    """Which images, and the crops of them.

    Attributes:
        name: ``digits`` (embedded), ``clothing64``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``,
            ``imagenet``, or ``folder`` (any class-per-folder tree).
        root: folder of the data; ``TENFOLD_DATA`` where null.
        unlabelled: pre-train on these images instead of the training split: a folder of images at any depth, or tar
            shards such as ``shards/train-{0000..0146}.tar``.
        validation: images taken from the training split for choices such as the sweep's.
        limit: use only so many of the training images, the first ones; all where null.
        image_size: side of the images of ``clothing64``, ``folder`` and ``imagenet``.
        crop_scale: smallest share of an image's area that a pre-training crop takes.
        flip: mirror half of the images in training.
        jitter: strength of the colour jitter of the student's view.
        workers: processes that decode image files.
    """

    name: Literal["digits", "clothing64", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet", "folder"] = (
        "digits"
    )
    root: str | None = None
    unlabelled: str | None = None
    validation: int = 200
    limit: int | None = None
    image_size: int = 224
    crop_scale: float = 0.2
    flip: bool = True
    jitter: float = 0.4
    workers: int = 0


@dataclass
class TeacherOptions:
    """The frozen network, and how it is pre-trained where no weights are given.

    Attributes:
        name: ``vit``, of the sizes below; ``timm/NAME``; or ``transformers``, from the folder ``weights``.
        weights: checkpoint of it: an official MAE or TinyMIM file, a model folder of tenfold, safetensors, or for
            ``transformers`` a folder; pre-trained here as a masked autoencoder where null.
        width: of the tokens.
        depth: number of blocks.
        heads: of all blocks, or one number per block.
        patch: side of the patches; the student has the same grid.
        mean: per channel, that it was trained with; the data's where null.
        std: likewise.
        epochs: of its pre-training.
        batch_size: images per step.
        learning_rate: of AdamW.
        warmup_epochs: of its pre-training.
        mask_ratio: share of masked patches.
        decoder_width: of the decoder's tokens.
        decoder_depth: blocks of the decoder.
        decoder_heads: heads of its blocks.
        normalize_pixels: predict pixels normalized within each patch.
    """

    name: str = "vit"
    weights: str | None = None
    width: int = 96
    depth: int = 6
    heads: list[int] = field(default_factory=lambda: [8])
    patch: int = 2
    mean: list[float] | None = None
    std: list[float] | None = None
    epochs: int = 40
    batch_size: int = 100
    learning_rate: float = 2e-3
    warmup_epochs: float = 3.0
    mask_ratio: float = 0.6
    decoder_width: int = 48
    decoder_depth: int = 1
    decoder_heads: int = 4
    normalize_pixels: bool = False


@dataclass
class StudentOptions:
    """The network that learns.

    Attributes:
        name: ``vit``, of the sizes below, or ``timm/NAME``.
        width: of the tokens.
        depth: number of blocks.
        heads: of its blocks before the last one adapts.
        finetune_heads: ``as-pretrained`` keeps the adapted last block; ``uniform`` gives it back its own number of
            heads, as published.
    """

    name: str = "vit"
    width: int = 32
    depth: int = 4
    heads: int = 2
    finetune_heads: Literal["as-pretrained", "uniform"] = "as-pretrained"


@dataclass
class DistilOptions:
    """Pre-training of the student, the same budget in every arm.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step, over all processes.
        learning_rate: of AdamW; published: 1.5e-4 times batch size over 256.
        weight_decay: of matrices and the class token.
        warmup_epochs: of linear warm-up.
        drop_path: of every block but the last.
        views: fixed crops of each image whose teacher's side is computed once, for small sets in memory; null for new
            crops in every epoch, as published.
        cache_mb: largest size of what is so computed.
        watch_knn: measure nearest neighbours on the validation images after every epoch, for the log of epochs.
        pairs: relations of the arm ``relations``.
        teacher_layer: the teacher's block, from 1; null for the rule: the last of equal depths, else three quarters up.
        heads: ``auto``, ``adaptive``, ``mean`` or a number of relation heads.
        kernel: form of the loss, see `tenfold.losses.relation_kl`.
        mask_ratio: share of masked patches in arms with masked input and on the student's own masked autoencoder.
        chain: widths of networks between teacher and student, for the arm ``chain``; each learns from the one before.
    """

    epochs: int = 30
    batch_size: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 2.0
    drop_path: float = 0.1
    views: int | None = None
    cache_mb: int = 2048
    watch_knn: bool = False
    pairs: list[str] = field(default_factory=lambda: ["qk", "vv"])
    teacher_layer: int | None = None
    heads: Literal["auto", "adaptive", "mean"] | int = "auto"
    kernel: Literal["auto", "direct", "chunked", "identity", "triton"] = "auto"
    mask_ratio: float = 0.6
    chain: list[int] = field(default_factory=lambda: [64])


@dataclass
class FinetuneOptions:
    """Fine-tuning with labels, the same in every arm.

    Attributes:
        labels: number of training images whose labels are used, the first ones; all where null. Pre-training uses all
            images, without labels.
        epochs: passes over the labelled images.
        few_labels: labels per class of a second fine-tuning on few labels; 0 for none.
        few_epochs: passes over these.
        longer: fine-tune the first seed of ``scratch`` and ``mae`` so many times as long, too: whether a difference is
            one of what was learnt or of its speed. 0 for none.
        batch_size: images per step, over all processes.
        learning_rate: of the head; published: 5e-4 times batch size over 256.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below.
        warmup_epochs: of linear warm-up.
        drop_path: of the last block, rising linearly.
        crop_scale: smallest share of an image's area that a crop takes.
        randaugment: timm's RandAugment for image files, such as ``rand-m9-mstd0.5-inc1``, or null.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none.
        smoothing: of the labels.
        erase: probability of a random rectangle of noise.
    """

    labels: int | None = None
    epochs: int = 30
    few_labels: int = 10
    few_epochs: int = 60
    longer: int = 0
    batch_size: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    warmup_epochs: float = 3.0
    drop_path: float = 0.0
    crop_scale: float = 0.6
    randaugment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    erase: float = 0.0


@dataclass
class Config:
    """Settings of a run of relation distillation.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds of the students; arms are compared seed by seed.
        arms: what is trained beside ``relations``: names of `ARMS`, or ``block-N`` for relations of block N.
        data: see `DataOptions`.
        teacher: see `TeacherOptions`.
        student: see `StudentOptions`.
        distil: see `DistilOptions`.
        finetune: see `FinetuneOptions`.
        trainer: see `tenfold.training.TrainerOptions`; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: int = 0
    seeds: int = 3
    arms: list[str] = field(default_factory=lambda: ["scratch", "mae", "cls", "feature-qkv"])
    data: DataOptions = field(default_factory=DataOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    student: StudentOptions = field(default_factory=StudentOptions)
    distil: DistilOptions = field(default_factory=DistilOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)


_IMAGENET = DataOptions(name="imagenet", validation=10000, image_size=224, workers=10)


def _paper(preset: str, width: int, heads: int, teacher: TeacherOptions, **finetune: Any) -> Config:
    """Published settings (TinyMIM, section 4.1 and the released scripts)."""
    recipe: dict[str, Any] = {
        "few_labels": 0, "batch_size": 1024, "learning_rate": 2e-3, "layer_decay": 0.65, "drop_path": 0.2,
        "epochs": 100, "warmup_epochs": 5.0, "crop_scale": 0.08, "randaugment": "rand-m9-mstd0.5-inc1",
        "mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "erase": 0.25,
    }  # fmt: skip
    return Config(
        preset=preset,
        seeds=1,
        arms=["scratch"],
        data=_IMAGENET,
        teacher=teacher,
        student=StudentOptions(width=width, depth=12, heads=heads, finetune_heads="uniform"),
        distil=DistilOptions(
            epochs=300, batch_size=4096, learning_rate=2.4e-3, warmup_epochs=15.0, mask_ratio=0.75, chain=[768]
        ),
        finetune=FinetuneOptions(**(recipe | finetune)),
        trainer=TrainerOptions(devices=8, precision="16-mixed"),
    )


def _paper_teacher(width: int, depth: int, heads: list[int], weights: str) -> TeacherOptions:
    return TeacherOptions(
        weights=weights, width=width, depth=depth, heads=heads, patch=16, mask_ratio=0.75, epochs=1600,
        batch_size=4096, learning_rate=2.4e-3, warmup_epochs=40.0, decoder_width=512, decoder_depth=8,
        decoder_heads=16, normalize_pixels=True,
    )  # fmt: skip


# Of the small students the paper says only "higher learning rate and larger batch": these follow recipes published for
# the same sizes by others.
_SMALL_STUDENTS: dict[str, Any] = {"learning_rate": 4e-3, "layer_decay": 0.75, "drop_path": 0.0, "epochs": 200}

PRESETS = {
    "tiny": Config(
        seeds=1,
        arms=["scratch", "feature-qkv"],
        data=DataOptions(flip=False, crop_scale=1.0, jitter=0.2),
        teacher=TeacherOptions(
            width=64, depth=4, heads=[8], batch_size=50, epochs=20, learning_rate=2e-3, decoder_width=32
        ),
        student=StudentOptions(depth=3),
        distil=DistilOptions(epochs=8, batch_size=50, learning_rate=2e-3, drop_path=0.0, views=2),
        finetune=FinetuneOptions(
            epochs=5, few_epochs=20, batch_size=50, learning_rate=1e-3, crop_scale=0.8, warmup_epochs=1.0
        ),
    ),
    "small": Config(
        preset="small",
        data=DataOptions(name="fashion-mnist", validation=2000, crop_scale=0.6, jitter=0.2),
        teacher=TeacherOptions(
            width=64, depth=4, heads=[8], patch=4, batch_size=50, epochs=8, learning_rate=2e-3, decoder_width=32
        ),
        student=StudentOptions(depth=3),
        distil=DistilOptions(epochs=4, batch_size=50, learning_rate=4e-3, drop_path=0.0, views=2),
        finetune=FinetuneOptions(
            labels=1000, epochs=24, few_epochs=60, longer=2, batch_size=100, learning_rate=6e-3, layer_decay=1.0,
            crop_scale=0.8,
        ),
    ),
    "paper": _paper("paper", 768, 12, _paper_teacher(1024, 24, [16], "mae_pretrain_vit_large.pth")),
    "paper-small": _paper(
        "paper-small", 384, 6, _paper_teacher(768, 12, [12] * 11 + [16], "TinyMIM-PT-B.pth"), **_SMALL_STUDENTS
    ),
    "paper-tiny": _paper(
        "paper-tiny", 192, 3, _paper_teacher(384, 12, [6] * 11 + [12], "TinyMIM-PT-S.pth"),
        **(_SMALL_STUDENTS | {"epochs": 300, "mixup": 0.2, "cutmix": 0.0, "erase": 0.0, "smoothing": 0.0}),
    ),
}  # fmt: skip
"""Presets by name. ``paper...`` are the published settings, on data and teachers that the user has."""
