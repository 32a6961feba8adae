"""Settings of the experiment: options, arms, presets."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.data.options import ImageOptions
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


@dataclass
class ModelOptions:
    """Which network.

    Attributes:
        name: ``tiny-cnn``, ``small-cnn``, ``msdnet``, ``ranet``; published settings, as ``msdnet-cifar100-anytime``;
            ``torchvision/NAME`` or ``timm/NAME``, given exits at ``taps``; or ``factory``, for a network of your own.
        factory: ``package.module:function``, called with ``num_classes``; gives an ``nn.Module``. For ``factory``.
        taps: modules after which exits are attached, such as ``[layer1, layer2]``; the network's own output is the
            last exit.
        arguments: further arguments of the network, such as ``{widths: [8, 16]}``.
        mode: what is trained where exits are attached: ``joint``, ``heads`` (trunk frozen) or ``finetune`` (trunk at
            a tenth of the learning rate).
        weights: checkpoint of the trunk to start from (safetensors, or a torch file of plain tensors).
    """

    name: str = "tiny-cnn"
    factory: str | None = None
    taps: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    mode: Literal["joint", "heads", "finetune"] = "joint"
    weights: str | None = None

    def check(self) -> None:
        """Refuse a factory that is not asked for, or is missing."""
        if (self.factory is not None) != (self.name == "factory"):
            raise UserError(
                "model.factory goes with model.name factory: give both, as in --model.name factory --model.factory "
                "mypackage.networks:make"
            )


@dataclass
class MethodOptions:
    """The boosted arm.

    Attributes:
        reweight: factor of the older ensemble: one number, two (interpolated) or one per exit; 0.5 as published.
        rescale: gradient rescaling.
        equalise: loss equalisation.
    """

    reweight: list[Share] = field(default_factory=lambda: [0.5])
    rescale: bool = True
    equalise: bool = False


@dataclass
class OptimizerOptions:
    """How the weights are learnt, the same in every arm.

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step, over all processes together.
        learning_rate: of stochastic gradient descent.
        momentum: of it.
        weight_decay: one number, or two interpolated over the stages (a parameter group per stage and head).
        schedule: ``constant``, ``multistep`` or ``cosine``.
        milestones: epochs after which ``multistep`` divides the learning rate by ten.
        warmup_epochs: epochs of linear warm-up.
    """

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 0.1
    momentum: ProperShare = 0.9
    weight_decay: list[NonNegativeFloat] = field(default_factory=lambda: [1e-4])
    schedule: Literal["constant", "multistep", "cosine"] = "multistep"
    milestones: list[Count] = field(default_factory=lambda: [10, 15])
    warmup_epochs: NonNegativeFloat = 0.0

    def check(self) -> None:
        """Refuse another number of weight decays than one or two."""
        if len(self.weight_decay) not in (1, 2):
            raise UserError(f"optimizer.weight_decay takes one or two numbers; got {self.weight_decay}")


@dataclass
class Config:
    """Settings of a run of boosted exits.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        arms: what is trained beside ``boosted``: names of ``ARMS``.
        budget: mean cost a sample may have when the delivered network is served, as a share of the full cost.
        cost: how costs are counted: ``multiply-adds``, ``torch`` (two per multiply-add) or ``msdnet`` (the official
            counter).
        data: see ``tenfold.data.ImageOptions``.
        model: see ``ModelOptions``.
        method: see ``MethodOptions``.
        optimizer: see ``OptimizerOptions``.
        trainer: see ``tenfold.training.TrainerOptions``; changes where a run computes, not what.
        workers: processes that train at the same time, one thread each; one per free core where null.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 3
    arms: list[str] = field(default_factory=lambda: ["joint", "joint-rescaled"])
    budget: PositiveShare = 0.5
    cost: Literal["multiply-adds", "torch", "msdnet"] = "multiply-adds"
    data: ImageOptions = field(default_factory=ImageOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    workers: PositiveInt | None = None

    def check(self) -> None:
        """Refuse arms that do not exist or are named twice."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise UserError(f"arms: there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        if len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms: each is trained once; got {self.arms}")


@dataclass(frozen=True)
class Arm:
    """One way to train the heads; the switches are orthogonal.

    Attributes:
        reweight: factor of the older ensemble; 0 is joint training.
        rescale: gradient rescaling.
        stop_gradient: whether an exit's loss leaves the older heads alone.
    """

    reweight: tuple[float, ...]
    rescale: bool
    stop_gradient: bool = True


ARMS = {
    "joint": Arm((0.0,), rescale=False),
    "joint-rescaled": Arm((0.0,), rescale=True),
    "boosted-unscaled": Arm((0.5,), rescale=False),
    "boosted-through": Arm((0.5,), rescale=True, stop_gradient=False),
    "boosted-r0.25": Arm((0.25,), rescale=True),
    "boosted-r0.75": Arm((0.75,), rescale=True),
    "boosted-r1": Arm((1.0,), rescale=True),
}
"""Baselines and ablations by name; ``boosted`` itself is ``MethodOptions``."""


def arms_of(config: Config) -> dict[str, Arm]:
    """The arms of a run by name, ``boosted`` last."""
    boosted = Arm(tuple(config.method.reweight), rescale=config.method.rescale)
    return {name: ARMS[name] for name in config.arms} | {"boosted": boosted}


def _paper(preset: str, dataset: Literal["cifar100", "imagenet"], network: str) -> Config:
    """Settings of the official scripts."""
    imagenet = dataset == "imagenet"
    rescale = network.startswith("msdnet")  # in all official MSDNet scripts, in none of RANet
    return Config(
        preset=preset,
        seeds=1,
        arms=["joint-rescaled" if rescale else "joint"],
        cost="msdnet",
        data=ImageOptions(name=dataset, workers=8 if imagenet else 0),
        model=ModelOptions(name=network),
        method=MethodOptions(rescale=rescale),
        optimizer=OptimizerOptions(
            epochs=90 if imagenet else 300,
            batch_size=256 if imagenet else 64,
            milestones=[30, 60] if imagenet else [150, 225],
        ),
        trainer=TrainerOptions(devices=4 if imagenet else 1),
    )


_SMALL_FASHION: dict[str, Any] = {
    "data": ImageOptions(name="fashion-mnist"),
    "optimizer": OptimizerOptions(epochs=16, milestones=[8, 12]),
}

PRESETS = {
    "tiny": Config(),
    "small": Config(
        preset="small",
        seeds=5,
        model=ModelOptions(name="small-cnn"),
        arms=[*ARMS],
        **_SMALL_FASHION,
    ),
    "small-msdnet": Config(
        preset="small-msdnet",
        arms=["joint-rescaled"],
        model=ModelOptions(
            name="msdnet",
            arguments={
                "num_blocks": 5,
                "base": 1,
                "step": 1,
                "channels": 8,
                "growth_rate": 4,
                "growth_factors": [1, 2],
                "bottleneck_factors": [1, 2],
            },
        ),
        **_SMALL_FASHION,
    ),
    "paper": _paper("paper", "cifar100", "msdnet-cifar100-anytime"),
    "paper-budgeted": _paper("paper-budgeted", "cifar100", "msdnet-cifar100-batch"),
    "paper-ranet": _paper("paper-ranet", "cifar100", "ranet-cifar100-anytime"),
    "paper-ranet-budgeted": _paper("paper-ranet-budgeted", "cifar100", "ranet-cifar100-batch1"),
    "paper-imagenet": _paper("paper-imagenet", "imagenet", "msdnet-imagenet-step7"),
    "paper-imagenet-ranet": _paper("paper-imagenet-ranet", "imagenet", "ranet-imagenet-anytime"),
}
"""Presets by name. ``paper...`` are the published settings, on data that the user has."""
