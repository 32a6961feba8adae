"""Settings of the experiment: data, network, training, arms, presets."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.settings import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Seed,
    Share,
)
from tenfold.training.options import TrainerOptions


@dataclass
class DataOptions:
    """Which frames.

    Attributes:
        name: ``rooms`` (14 small and thin boxes), ``rooms-easy``, ``drive`` (a real drive with LiDAR), ``pairs``
            (folders ``rgb`` and ``depth``), ``csv``, ``kitti`` or ``nyu``.
        also: further data on which all arms are trained, too; the delivered network is that of ``name``.
        also_steps: share of the steps on ``name`` that the arms are trained for on ``also``.
        root: folder or file of the data; TENFOLD_DATA where null.
        images: number of rooms to train on.
        image_size: [height, width] of the frames; their own where null.
        depth_scale: values per metre of the depth files (PNG: 1000 for millimetres, 256 for KITTI).
        focal: focal length in pixels, of ``pairs``.
        border: what is cut off every training frame: ``none``, ``kitti`` or ``nyu``.
        train_list: split list of ``kitti`` or ``nyu``.
        test_list: split list of ``kitti`` or ``nyu``.
        use_right: also train on the right camera's frames of KITTI's five-column lists.
        validation: share that validates, where the data have no such part.
        test: share that tests, where the data have no such part.
        order: which frames test: the last by ``name``, or ``random`` ones.
        skip_unpaired: leave out files without a partner.
        degrees: largest rotation in training.
        crop: [height, width] of random training crops; none where null.
        flip: probability of a horizontal flip.
        colour: probability of a change of colour.
        brightness: half-width of the brightness factor.
        workers: processes that read frames.
    """

    name: str = "rooms"
    also: list[str] = field(default_factory=list)
    also_steps: PositiveShare = 1.0
    root: str | None = None
    images: PositiveInt = 200
    image_size: list[int] | None = None
    depth_scale: PositiveFloat | None = None
    focal: PositiveFloat | None = None
    border: Literal["none", "kitti", "nyu"] = "none"
    train_list: str | None = None
    test_list: str | None = None
    use_right: bool = False
    validation: Share = 0.1
    test: Share = 0.2
    order: Literal["name", "random"] = "name"
    skip_unpaired: bool = False
    degrees: NonNegativeFloat = 0.0
    crop: list[int] | None = None
    flip: Share = 0.5
    colour: Share = 0.5
    brightness: Share = 0.1
    workers: Count = 0


@dataclass
class ModelOptions:
    """Which network; the arm ``fscn`` is exactly this one.

    Attributes:
        encoder: ``tiny``, ``tiny-W-W-...`` with widths of its levels, or ``timm/NAME``.
        pretrained: whether timm fetches weights for it.
        encoder_weights: model folder whose encoder, of the same network, training starts from.
        decoder: ``full-skip``, ``unet``, ``bts``, ``unet3plus`` or ``dpt``.
        connectivity: ``none``, ``same``, ``shallow`` or ``full``.
        fusion: ``concat``, ``scalar``, ``se``, ``scalar+se``, ``pixel`` or ``cbam``.
        resize: ``area``, ``max``, ``strided``, ``bilinear_aa`` or ``bilinear``.
        skip_projection: channels of a projected skip; none are projected where null.
        width: channels of the deepest decoder level.
        head: ``sigmoid``, ``exp``, ``softplus`` or ``bins``.
        min_depth: smallest depth, in metres.
        max_depth: largest depth; where null that of the data set (rooms and NYU 10, KITTI and the drive 80), and
            for data of your own the largest depth of its training frames.
        focal_reference: focal length to which depth refers, as BTS' 715.0873; not rescaled where null.
        frozen_batch_norm: keep the statistics of the encoder's batch normalizations.
    """

    encoder: str = "tiny-8-16-24-32-48"
    pretrained: bool = False
    encoder_weights: str | None = None
    decoder: Literal["full-skip", "unet", "bts", "unet3plus", "dpt"] = "full-skip"
    connectivity: Literal["none", "same", "shallow", "full"] = "shallow"
    fusion: Literal["concat", "scalar", "se", "scalar+se", "pixel", "cbam"] = "scalar+se"
    resize: Literal["area", "max", "strided", "bilinear_aa", "bilinear"] = "area"
    skip_projection: PositiveInt | None = None
    width: PositiveInt = 48
    head: Literal["sigmoid", "exp", "softplus", "bins"] = "sigmoid"
    min_depth: NonNegativeFloat = 1e-3
    max_depth: PositiveFloat | None = None
    focal_reference: PositiveFloat | None = None
    frozen_batch_norm: bool = False


@dataclass
class OptimizerOptions:
    """How the weights are learnt, the same in every arm.

    Attributes:
        recipe: ``adabins`` (one cycle) or ``bts`` (polynomial decay, frozen first convolution and norms).
        epochs: passes over the training frames.
        batch_size: frames of a step, over all processes together.
        learning_rate: highest.
        weight_decay: of AdamW.
        encoder_factor: of the encoder's learning rate.
        variance_focus: lambda of the scale-invariant loss.
        least_depth: pixels count above this depth.
        auxiliary: weights of coarser levels that are supervised, too; the finer first.
        bins: weight of the bins' Chamfer loss.
    """

    recipe: Literal["adabins", "bts"] = "adabins"
    epochs: PositiveInt = 6
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 5e-3
    weight_decay: NonNegativeFloat = 0.01
    encoder_factor: PositiveFloat = 1.0
    variance_focus: Share = 0.85
    least_depth: NonNegativeFloat = 1e-3
    auxiliary: list[float] = field(default_factory=list)
    bins: NonNegativeFloat = 0.1


@dataclass
class Config:
    """Settings of a run of full-skip depth.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        arms: what is trained beside ``fscn``: names of ``ARMS``.
        flip_test: average with the mirrored prediction of the mirrored image when measuring.
        data: see ``DataOptions``.
        model: see ``ModelOptions``.
        optimizer: see ``OptimizerOptions``.
        workers: processes that share the arms and seeds; one per free core where null.
        trainer: see ``tenfold.TrainerOptions``; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 1
    arms: list[str] = field(default_factory=lambda: ["unet"])
    flip_test: bool = False
    workers: PositiveInt | None = None
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=lambda: TrainerOptions(gradient_clip=0.1))

    def check(self) -> None:
        """Refuse names that are not there, and settings that do not go together.

        Raises:
            UserError: names the setting.
        """
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise UserError(f"arms: there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        data = self.data
        if len({data.name, *data.also}) != 1 + len(data.also):
            raise UserError(f"data.also repeats data: {data.name}, {', '.join(data.also)}")
        for name, value, least in (("crop", data.crop, 32), ("image_size", data.image_size, 32)):
            if value is not None and (len(value) != 2 or min(value) < least):
                raise UserError(f"data.{name} is [height, width], {least} or more each; got {value}")
        if not 0 < data.validation < 1 or not 0 < data.test < 1 or data.degrees >= 90:
            raise UserError("data.validation and data.test are shares in (0, 1), data.degrees lies below 90")
        if any(weight <= 0 for weight in self.optimizer.auxiliary):
            raise UserError(f"optimizer.auxiliary holds weights above 0; got {self.optimizer.auxiliary}")
        top = self.model.max_depth
        if top is not None and not self.model.min_depth < top:
            raise UserError(f"model.min_depth must lie below max_depth; got {self.model.min_depth} and {top}")


ARMS: dict[str, dict[str, Any]] = {
    "none": {"decoder": "full-skip", "connectivity": "none", "fusion": "concat"},
    "unet": {"decoder": "full-skip", "connectivity": "same", "fusion": "concat"},
    "same-acm": {"decoder": "full-skip", "connectivity": "same"},
    "shallow-concat": {"decoder": "full-skip", "connectivity": "shallow", "fusion": "concat"},
    "full-acm": {"decoder": "full-skip", "connectivity": "full"},
    "fscn-equal": {},
    "bts": {"decoder": "bts"},
    "adabins": {"decoder": "unet", "head": "bins"},
    "adabins-unet": {"decoder": "unet"},
    "unet3plus": {"decoder": "unet3plus"},
    "dpt": {"decoder": "dpt"},
}
"""Baselines and ablations by name, as changes of ``ModelOptions``. ``unet`` sees equal resolutions only, without
adaptation; ``fscn-equal`` is FSCN made narrower until it has no more parameters than ``unet``."""

USUAL_MAX_DEPTH = {"rooms": 10.0, "rooms-easy": 10.0, "nyu": 10.0, "kitti": 80.0, "drive": 80.0}


def arms_of(config: Config) -> list[str]:
    """Names of all arms, ``fscn`` last."""
    return [*config.arms, "fscn"]


def _published(name: Literal["nyu", "kitti"], recipe: Literal["adabins", "bts"]) -> Config:
    """The field's settings; the encoder is AdaBins' EfficientNet-B5 or BTS' ResNet-50."""
    nyu, adabins = name == "nyu", recipe == "adabins"
    return Config(
        preset="paper",
        arms=["unet"],
        flip_test=adabins,
        data=DataOptions(
            name=name,
            border=name,
            degrees=2.5 if nyu else 1.0,
            crop=[416, 544] if nyu else [352, 704],
            brightness=0.25 if nyu else 0.1,
            workers=8,
        ),
        model=ModelOptions(
            encoder="timm/tf_efficientnet_b5.ap_in1k" if adabins else "timm/resnet50.tv_in1k",
            pretrained=True,
            width=512,
            skip_projection=None if adabins else 64,
            focal_reference=None if nyu or adabins else 715.0873,
            frozen_batch_norm=not adabins,
        ),
        optimizer=OptimizerOptions(
            recipe=recipe,
            epochs=25 if adabins else 50,
            batch_size=16 if adabins else 4,
            learning_rate=3.57e-4 if adabins else 1e-4,
            weight_decay=0.1 if adabins else 0.01,
            encoder_factor=0.1 if adabins else 1.0,
            least_depth=1e-3 if adabins else 0.1 if nyu else 1.0,
        ),
        trainer=TrainerOptions(gradient_clip=0.1 if adabins else None, precision="bf16-mixed"),
    )


PRESETS = {
    "tiny": Config(),
    "small": Config(
        preset="small",
        seeds=3,
        arms=["none", "unet", "same-acm", "shallow-concat", "full-acm", "fscn-equal", "bts", "adabins", "dpt"],
        data=DataOptions(images=960, image_size=[48, 64], also=["drive"], also_steps=0.35),
        optimizer=OptimizerOptions(epochs=4),
    ),
    "paper": _published("nyu", "adabins"),
    "paper-kitti": _published("kitti", "adabins"),
    "paper-bts": _published("nyu", "bts"),
    "paper-bts-kitti": _published("kitti", "bts"),
}
"""Presets by name. ``paper...`` are the field's published settings, on data that the user has; the paper of FSCN itself
could not be read beyond its abstract."""
for _name, _config in PRESETS.items():
    _config.preset = _name
