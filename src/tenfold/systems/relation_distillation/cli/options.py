"""Options that the training verbs share, and what they leave behind: results that ``tenfold report`` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import tenfold
from tenfold.results import Cost, Plot, Results, Series
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, ProperShare, Share
from tenfold.systems.relation_distillation.experiment.settings import DataOptions

NAMED = tuple(name for name in get_args(get_type_hints(DataOptions)["name"]) if name not in ("imagenet", "folder"))
"""Data sets that a verb takes by their name; others are places."""


@dataclass(frozen=True)
class ViewOptions:
    """What a student sees of images without labels.

    Attributes:
        image_size: side of the images in pixels.
        crop_scale: smallest share of an image's area that a crop takes.
        views: so many crops of each image, kept in memory, whose teacher's side is computed once: for small sets; new
            crops in every epoch where null.
        cache_mb: largest size of what is so kept.
        unreadable: what is done about files that cannot be read: refuse names them, leave-out goes on without them.
        workers: processes that decode image files.
    """

    image_size: PositiveInt = 224
    crop_scale: PositiveShare = 0.2
    views: PositiveInt | None = None
    cache_mb: PositiveInt = 2048
    unreadable: Literal["refuse", "leave-out"] = "refuse"
    workers: Count = 0


@dataclass(frozen=True)
class Distillation:
    """How a student learns.

    Attributes:
        epochs: passes over the images.
        batch_size: images of a step, over all processes; at most the images that there are.
        learning_rate: of AdamW; 1.5e-4 times batch size over 256 where null.
        drop_path: of every block of the student but the last.
        pairs: relations.
        teacher_layer: block from 1; by the rule where null (the last of equal depths, else three quarters up).
        heads: how head counts are made equal: auto, adaptive, mean, or a number of relation heads.
        patch: side of the student's patches.
    """

    epochs: PositiveInt = 300
    batch_size: PositiveInt = 4096
    learning_rate: PositiveFloat | None = None
    drop_path: ProperShare = 0.1
    pairs: list[str] = field(default_factory=lambda: ["qk", "vv"])
    teacher_layer: PositiveInt | None = None
    heads: Literal["auto", "adaptive", "mean"] | PositiveInt = "auto"
    patch: PositiveInt = 16


@dataclass(frozen=True)
class FinetuningOptions:
    """How a classifier is fine-tuned.

    Attributes:
        epochs: passes over the images.
        batch_size: images of a step, over all processes; at most the images that there are.
        learning_rate: of the head; 5e-4 times batch size over 256 where null.
        layer_decay: factor of the learning rate from one layer to the one below.
        drop_path: of the last block, rising linearly.
        crop_scale: smallest share of an image's area that a crop takes.
        flip: mirror half of the images.
        randaugment: timm's policy for image files, such as rand-m9-mstd0.5-inc1.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none.
        smoothing: of the labels.
        erase: probability of a random rectangle of noise.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 1024
    learning_rate: PositiveFloat | None = None
    layer_decay: PositiveShare = 0.75
    drop_path: ProperShare = 0.0
    crop_scale: PositiveShare = 0.08
    flip: bool = True
    randaugment: str | None = None
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    smoothing: ProperShare = 0.0
    erase: Share = 0.0


def training_results(
    run: Run,
    verb: str,
    *,
    seed: int,
    metrics: Mapping[str, float | None],
    history: Sequence[Mapping[str, float]],
    params: int,
    flops: int,
    device: str,
    summary: str,
    notes: Sequence[str],
    **data: Any,
) -> Results:
    """Results of one training, without claims: there is nothing beside it to compare with.

    Args:
        run: the run.
        verb: what trained.
        seed: of the training.
        metrics: what was measured.
        history: rows of the training.
        params: of the network.
        flops: multiply-adds of one image.
        device: where it ran.
        summary: one sentence of measured numbers.
        notes: what a reader must know.
        data: further entries of the environment.
    """
    return Results(
        system="relation-distillation",
        preset=verb,
        seed=seed,
        version=tenfold.__version__,
        summary=summary,
        claims=[],
        metrics={verb: dict(metrics)},
        cost=Cost(params=params, flops=flops, seconds=run.seconds, peak_memory_mb=peak_process_memory_mb()),
        environment=environment(device, **data),
        plots=[
            Plot(
                id="loss",
                title="Training loss",
                kind="line",
                x_label="epoch",
                y_label="loss",
                series=[Series(name=verb, x=[r["epoch"] for r in history], y=[r["train/loss"] for r in history])],
            )
        ],
        notes=[*notes, "The cost is in multiply-adds of one image."],
    )
