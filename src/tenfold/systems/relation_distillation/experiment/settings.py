"""Settings of the experiment: options and presets; light: neither torch nor Lightning is imported here."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from tenfold.errors import UserError
from tenfold.settings import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    ProperShare,
    Seed,
    Share,
)
from tenfold.training.options import TrainerOptions

OpenShare = Annotated[float, Interval(gt=0, lt=1)]
"""In (0, 1)."""


@dataclass
class DataOptions:
    """Which images, and the crops of them.

    Attributes:
        name: ``digits`` (embedded), ``clothing64``, ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``,
            ``imagenet``, or ``folder`` (any class-per-folder tree).
        root: folder of the data; ``TENFOLD_DATA`` where null.
        unlabelled: pre-train on these images instead of the training split: a folder of images at any depth, or tar
            shards such as ``shards/train-{0000..0146}.tar``.
        validation: images taken from the training split for choices such as the sweep's; where null, as many as were
            measured with for the data set (digits 200, fashion-mnist 2,000, imagenet 10,000), or a tenth.
        limit: use only so many of the training images, the first ones; all where null.
        image_size: side of the images of ``clothing64``, ``folder`` and ``imagenet``; 14 patches where null, which is
            224 for patches of 16.
        unreadable: what is done about files of ``folder`` that cannot be read: ``refuse`` names them, ``leave-out``
            goes on without them and says how many.
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
    validation: PositiveInt | None = None
    limit: PositiveInt | None = None
    image_size: PositiveInt | None = None
    unreadable: Literal["refuse", "leave-out"] = "refuse"
    crop_scale: PositiveShare = 0.2
    flip: bool = True
    jitter: NonNegativeFloat = 0.4
    workers: Count = 0


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
        arguments: further ones of ``timm/NAME``, such as ``{dynamic_img_size: true}``.
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
    width: PositiveInt = 96
    depth: PositiveInt = 6
    heads: list[PositiveInt] = field(default_factory=lambda: [8])
    patch: PositiveInt = 2
    arguments: dict[str, Any] = field(default_factory=dict)
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None
    epochs: PositiveInt = 40
    batch_size: PositiveInt = 100
    learning_rate: PositiveFloat = 2e-3
    warmup_epochs: NonNegativeFloat = 3.0
    mask_ratio: OpenShare = 0.6
    decoder_width: PositiveInt = 48
    decoder_depth: PositiveInt = 1
    decoder_heads: PositiveInt = 4
    normalize_pixels: bool = False


@dataclass
class StudentOptions:
    """The network that learns.

    Attributes:
        name: ``vit``, of the sizes below, or ``timm/NAME``.
        width: of the tokens.
        depth: number of blocks.
        heads: of its blocks before the last one adapts.
        arguments: further ones of ``timm/NAME``.
        finetune_heads: ``as-pretrained`` keeps the adapted last block; ``uniform`` gives it back its own number of
            heads, as published.
    """

    name: str = "vit"
    width: PositiveInt = 32
    depth: PositiveInt = 4
    heads: PositiveInt = 2
    arguments: dict[str, Any] = field(default_factory=dict)
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

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 100
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.05
    warmup_epochs: NonNegativeFloat = 2.0
    drop_path: ProperShare = 0.1
    views: PositiveInt | None = None
    cache_mb: PositiveInt = 2048
    watch_knn: bool = False
    pairs: list[str] = field(default_factory=lambda: ["qk", "vv"])
    teacher_layer: PositiveInt | None = None
    heads: Literal["auto", "adaptive", "mean"] | PositiveInt = "auto"
    kernel: Literal["auto", "direct", "chunked", "triton"] = "auto"
    mask_ratio: OpenShare = 0.6
    chain: list[PositiveInt] = field(default_factory=lambda: [64])


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

    labels: PositiveInt | None = None
    epochs: PositiveInt = 30
    few_labels: Count = 10
    few_epochs: PositiveInt = 60
    longer: Count = 0
    batch_size: PositiveInt = 100
    learning_rate: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 0.05
    layer_decay: PositiveShare = 0.75
    warmup_epochs: NonNegativeFloat = 3.0
    drop_path: ProperShare = 0.0
    crop_scale: PositiveShare = 0.6
    randaugment: str | None = None
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    smoothing: ProperShare = 0.0
    erase: Share = 0.0


@dataclass
class Config:
    """Settings of a run of relation distillation.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds of the students; arms are compared seed by seed.
        arms: what is trained beside ``relations``: names of `ARMS`, or ``block-N`` for relations of block N.
        workers: processes of one thread each that share the arms and seeds; one per free core where null.
        data: see `DataOptions`.
        teacher: see `TeacherOptions`.
        student: see `StudentOptions`.
        distil: see `DistilOptions`.
        finetune: see `FinetuneOptions`.
        trainer: see `tenfold.training.TrainerOptions`; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 3
    arms: list[str] = field(default_factory=lambda: ["scratch", "mae", "cls", "feature-qkv"])
    workers: PositiveInt | None = None
    data: DataOptions = field(default_factory=DataOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    student: StudentOptions = field(default_factory=StudentOptions)
    distil: DistilOptions = field(default_factory=DistilOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def check(self) -> None:
        """Refuse settings that contradict each other, and settings without effect.

        Raises:
            UserError: names the setting and what it may be.
        """
        self._check_data()
        self._check_networks()
        for pair in self.distil.pairs:
            if len(pair) != 2 or not set(pair) <= set("qkv"):
                raise UserError(f"distil.pairs holds pairs of the letters q, k, v, such as qk; got {pair!r}")
        if not self.distil.pairs:
            raise UserError("distil.pairs must name at least one relation, such as [qk, vv]")

    def _check_data(self) -> None:
        data = self.data
        if data.name == "digits" and data.root is not None:
            raise UserError(
                f"data.root {data.root!r} has no effect on the embedded digits: name the data, as with "
                "--data.name folder"
            )
        if data.image_size is not None and data.name not in ("clothing64", "folder", "imagenet"):
            raise UserError(f"data.image_size has no effect on {data.name!r}, whose images have a size of their own")
        if data.unreadable != "refuse" and data.name != "folder":
            raise UserError(f"data.unreadable is for data.name folder, not for {data.name!r}")
        if self.finetune.randaugment is not None and data.name not in ("folder", "imagenet"):
            raise UserError(f"finetune.randaugment works on image files; {data.name} is in memory: set it to null")

    def _check_networks(self) -> None:
        teacher, student = self.teacher, self.student
        if len(teacher.heads) not in (1, teacher.depth):
            raise UserError(f"teacher.heads is one number, or one per block ({teacher.depth}); got {teacher.heads}")
        if teacher.decoder_width % teacher.decoder_heads or teacher.decoder_width % 4:
            raise UserError(
                f"teacher.decoder_width {teacher.decoder_width} is not a multiple of 4 and of teacher.decoder_heads "
                f"{teacher.decoder_heads}"
            )
        wrong = [count for count in teacher.heads if teacher.width % count] if teacher.name == "vit" else []
        if wrong:
            raise UserError(f"teacher.width {teacher.width} is not a multiple of its {wrong[0]} heads")
        if student.name == "vit":
            widths = [("student.width", student.width), *(("distil.chain", width) for width in self.distil.chain)]
            for setting, width in widths:
                if width % student.heads or width % 4:
                    raise UserError(
                        f"{setting} must be a multiple of student.heads {student.heads} and of 4; got {width}"
                    )
        for name, network in (("teacher", teacher.name), ("student", student.name)):
            if getattr(self, name).arguments and not network.startswith("timm/"):
                raise UserError(f"{name}.arguments are for timm/NAME, not for {network!r}")
        if (teacher.mean is None) != (teacher.std is None) or len(teacher.mean or []) != len(teacher.std or []):
            raise UserError("teacher.mean and teacher.std go together, one number per channel")


OWN_VALIDATION = {"digits": 200, "fashion-mnist": 2000, "imagenet": 10000}
"""Validation images of the data sets that presets were measured with, or were published for."""

_IMAGENET = DataOptions(name="imagenet", workers=10)


def _paper(preset: str, width: int, heads: int, teacher: TeacherOptions, **finetune: Any) -> Config:
    """Published settings (TinyMIM, section 4.1 and the released scripts)."""
    recipe: dict[str, Any] = {
        "few_labels": 0,
        "batch_size": 1024,
        "learning_rate": 2e-3,
        "layer_decay": 0.65,
        "drop_path": 0.2,
        "epochs": 100,
        "warmup_epochs": 5.0,
        "crop_scale": 0.08,
        "randaugment": "rand-m9-mstd0.5-inc1",
        "mixup": 0.8,
        "cutmix": 1.0,
        "smoothing": 0.1,
        "erase": 0.25,
    }
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
        weights=weights,
        width=width,
        depth=depth,
        heads=heads,
        patch=16,
        mask_ratio=0.75,
        epochs=1600,
        batch_size=4096,
        learning_rate=2.4e-3,
        warmup_epochs=40.0,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        normalize_pixels=True,
    )


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
        data=DataOptions(name="fashion-mnist", crop_scale=0.6, jitter=0.2),
        teacher=TeacherOptions(
            width=64, depth=4, heads=[8], patch=4, batch_size=50, epochs=8, learning_rate=2e-3, decoder_width=32
        ),
        student=StudentOptions(depth=3),
        distil=DistilOptions(epochs=4, batch_size=50, learning_rate=4e-3, drop_path=0.0, views=2),
        finetune=FinetuneOptions(
            labels=1000,
            epochs=24,
            few_epochs=60,
            longer=2,
            batch_size=100,
            learning_rate=6e-3,
            layer_decay=1.0,
            crop_scale=0.8,
        ),
    ),
    "paper": _paper("paper", 768, 12, _paper_teacher(1024, 24, [16], "mae_pretrain_vit_large.pth")),
    "paper-small": _paper(
        "paper-small", 384, 6, _paper_teacher(768, 12, [12] * 11 + [16], "TinyMIM-PT-B.pth"), **_SMALL_STUDENTS
    ),
    "paper-tiny": _paper(
        "paper-tiny",
        192,
        3,
        _paper_teacher(384, 12, [6] * 11 + [12], "TinyMIM-PT-S.pth"),
        **(_SMALL_STUDENTS | {"epochs": 300, "mixup": 0.2, "cutmix": 0.0, "erase": 0.0, "smoothing": 0.0}),
    ),
}
"""Presets by name. ``paper...`` are the published settings, on data and teachers that the user has."""
