"""Settings of the experiment: data, network, training, arms, presets."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, ProperShare, Seed, Share
from tenfold.training.options import TrainerOptions

CONFIGURATIONS = (
    "cmt_voxel0075_vov_1600x640_cbgs",
    "cmt_voxel0100_r50_800x320_cbgs",
    "cmt_camera_vov_1600x640_cbgs",
    "cmt_lidar_voxel0075_cbgs",
)
"""Names of the official configurations, which build the published networks."""


@dataclass
class DataOptions:
    """Which frames.

    Attributes:
        name: ``world`` (rendered, in nuScenes' format), ``drive`` (a real drive of six cameras and LiDAR), ``nuscenes``
            (its tables), ``infos`` (mmdet3d's info files) or ``frames`` (a rig of one's own, JSON or Parquet).
        root: folder of the data; TENFOLD_DATA/driving/pandaset-002 for ``drive`` where null.
        version: folder of nuScenes' tables, such as ``v1.0-trainval``.
        train: split of ``nuscenes``, or file of ``infos`` and ``frames`` below ``root``.
        test: the same for testing.
        train_scenes: scenes of the ``world`` to train on.
        test_scenes: scenes of the ``world`` to test on.
        frames: key frames of a scene of the ``world``.
        image_size: [height, width] to which images are brought.
        sweeps: most earlier clouds of a frame.
        classes: names of the classes; those of the data where null.
        area: the range, [x_min, y_min, z_min, x_max, y_max, z_max] in metres.
        farthest: distance to which boxes are scored, metres; nuScenes' own by class where null.
        missing_files: ``refuse`` frames whose files are not there, or take their sensors as ``missing``.
        in_memory: read all samples once; else every time that they are used.
    """

    name: Literal["world", "drive", "nuscenes", "infos", "frames"] = "world"
    root: str | None = None
    version: str = "v1.0-trainval"
    train: str | None = None
    test: str | None = None
    train_scenes: PositiveInt = 40
    test_scenes: PositiveInt = 20
    frames: PositiveInt = 2
    image_size: list[int] = field(default_factory=lambda: [32, 96])
    sweeps: Count = 1
    classes: list[str] | None = None
    area: list[float] = field(default_factory=lambda: [-19.2, -19.2, -3.0, 19.2, 19.2, 3.0])
    farthest: PositiveFloat | None = None
    missing_files: Literal["refuse", "missing"] = "refuse"
    in_memory: bool = True


@dataclass
class ModelOptions:
    """Which network.

    Attributes:
        network: ``small`` (pillars and a small image network), or the name of an official configuration.
        start: ``scratch``; ``shipped``, the weights that come with the package; ``auto``, those where the data are the
            rendered world and the network is the one they are of, and scratch elsewhere; or a model folder with a
            network of the same shape.
        dim: of tokens and queries; this and what follows is of ``small``.
        queries: number of queries.
        layers: of the decoder.
        heads: of the attentions.
        hidden: width of the feed-forward networks.
        depths: points along a ray.
        image_width: channels of the image network's first convolution.
        pillar_grid: [cells along y, cells along x].
        pillar_width: channels of a pillar.
        frequencies: ``octaves``, ``cmt`` or ``dab``.
        normalize_codes: bring codes to unit variance.
        attention_start: ``tied`` or ``xavier``.
        box_code: ``clean`` or ``cmt``.
    """

    network: Literal[
        "small",
        "cmt_voxel0075_vov_1600x640_cbgs",
        "cmt_voxel0100_r50_800x320_cbgs",
        "cmt_camera_vov_1600x640_cbgs",
        "cmt_lidar_voxel0075_cbgs",
    ] = "small"
    start: str = "scratch"
    dim: PositiveInt = 64
    queries: PositiveInt = 60
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    hidden: PositiveInt = 128
    depths: PositiveInt = 16
    image_width: PositiveInt = 8
    pillar_grid: list[int] = field(default_factory=lambda: [48, 48])
    pillar_width: PositiveInt = 16
    frequencies: Literal["octaves", "cmt", "dab"] = "octaves"
    normalize_codes: bool = True
    attention_start: Literal["tied", "xavier"] = "tied"
    box_code: Literal["clean", "cmt"] = "clean"


@dataclass
class MaskingOptions:
    """How often training hides sensors, in the arm ``masked``.

    Attributes:
        images: probability that all images are hidden.
        points: probability that the cloud is hidden.
        camera: probability that one camera is hidden where nothing else is.
        drop: share of the hidden that is left out rather than zeroed.
    """

    images: ProperShare = 0.25
    points: ProperShare = 0.25
    camera: ProperShare = 0.25
    drop: Share = 0.5

    def check(self) -> None:
        """Refuse probabilities that are more than one together.

        Raises:
            UserError: they are.
        """
        if self.images + self.points + self.camera > 1:
            raise UserError(
                "masking.images, masking.points and masking.camera must be at most 1 together; got "
                f"{self.images + self.points + self.camera:g}"
            )


@dataclass
class AugmentationOptions:
    """How training changes samples.

    Attributes:
        rotation: largest turn of the scene to either side, radians.
        scale: [smallest, largest] factor of the scene.
        translation: standard deviation along each axis, metres.
        flip: probability that x, and that y, is mirrored.
        image_factors: [smallest, largest] factor of the images' size; they just fill the size where null.
        image_flip: probability that the images are mirrored.
        grid_mask: probability of GridMask.
        paste: whether objects of other frames are pasted into clouds and images.
        objects: file of mmdet3d's objects (``nuscenes_dbinfos_train.pkl``) below data.root to paste; those of the
            training frames where null.
        fading: last epochs without pasted objects.
        balance: draw frames so that classes are balanced (CBGS).
    """

    rotation: NonNegativeFloat = 0.3
    scale: list[float] = field(default_factory=lambda: [0.95, 1.05])
    translation: NonNegativeFloat = 0.2
    flip: Share = 0.5
    image_factors: list[float] | None = None
    image_flip: Share = 0.5
    grid_mask: Share = 0.0
    paste: bool = False
    objects: str | None = None
    fading: Count = 0
    balance: bool = False

    def check(self) -> None:
        """Refuse pairs that are none.

        Raises:
            UserError: names the setting.
        """
        for name, pair in (("scale", self.scale), ("image_factors", self.image_factors)):
            if pair is not None and (len(pair) != 2 or not 0 < pair[0] <= pair[1]):
                raise UserError(f"augmentation.{name} is [smallest, largest], above 0; got {pair}")


@dataclass
class OptimizerOptions:
    """How the weights are learnt, the same in every arm.

    Attributes:
        epochs: passes over the training frames.
        pretask_epochs: of the image network alone, before; none where 0.
        batch_size: samples of a step, over all processes together.
        learning_rate: at the start of the cycle; the highest is ``peak`` times it.
        peak: factor of the highest learning rate.
        rise: share of the steps after which it is reached.
        weight_decay: of AdamW.
        image_factor: of the image network's learning rate.
        image_decay_factor: of its weight decay.
        denoising_groups: most copies of true boxes; none where 0.
    """

    epochs: PositiveInt = 4
    pretask_epochs: Count = 0
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 1e-4
    peak: PositiveFloat = 10.0
    rise: ProperShare = 0.2
    weight_decay: NonNegativeFloat = 0.01
    image_factor: PositiveFloat = 1.0
    image_decay_factor: NonNegativeFloat = 1.0
    denoising_groups: Count = 4


@dataclass
class Config:
    """Settings of a run of the cross-modal detector.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        arms: what is trained beside ``masked``: names of ``ARMS``.
        workers: processes that share the arms and seeds; one per free core where null.
        data: see ``DataOptions``.
        model: see ``ModelOptions``.
        masking: see ``MaskingOptions``.
        augmentation: see ``AugmentationOptions``.
        optimizer: see ``OptimizerOptions``.
        trainer: see ``tenfold.TrainerOptions``; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 1
    arms: list[str] = field(default_factory=lambda: ["plain"])
    workers: PositiveInt | None = None
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    masking: MaskingOptions = field(default_factory=MaskingOptions)
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=lambda: TrainerOptions(gradient_clip=10.0))

    def check(self) -> None:
        """Refuse names that are not there, and settings that do not go together.

        Raises:
            UserError: names the setting.
        """
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise UserError(f"arms: there is no arm {unknown[0]!r}; there are: {', '.join(ARMS)}")
        data, model = self.data, self.model
        if data.name == "world" and data.root is not None:
            raise UserError(f"data.root has no effect on the rendered world; got {data.root!r}")
        if data.name not in ("world", "drive") and (data.root is None or data.train is None or data.test is None):
            raise UserError(f"data.name {data.name} needs data.root, data.train and data.test")
        if self.augmentation.paste and self.augmentation.objects is None and not data.in_memory:
            raise UserError("augmentation.paste needs augmentation.objects where data.in_memory is off")
        if len(data.area) != 6 or any(a >= b for a, b in zip(data.area[:3], data.area[3:], strict=True)):
            raise UserError(f"data.area is [x_min, y_min, z_min, x_max, y_max, z_max]; got {data.area}")
        if len(data.image_size) != 2 or min(data.image_size) < 16 or any(side % 8 for side in data.image_size):
            raise UserError(f"data.image_size is [height, width], multiples of 8; got {data.image_size}")
        if model.dim % model.heads or model.dim % 2:
            raise UserError(f"model.dim must be even and a multiple of model.heads; got {model.dim}, {model.heads}")
        if len(model.pillar_grid) != 2 or any(cells < 2 or cells % 2 for cells in model.pillar_grid):
            raise UserError(f"model.pillar_grid is two even numbers; got {model.pillar_grid}")
        if model.image_width % 8 or model.pillar_width % 8:
            raise UserError("model.image_width and model.pillar_width are multiples of 8")


ARMS: dict[str, dict[str, Any]] = {
    "plain": {"masking": {"images": 0.0, "points": 0.0, "camera": 0.0}},
    "as-published": {"masking": {"camera": 0.0, "drop": 0.0}},
    "drop-only": {"masking": {"drop": 1.0}},
    "cmt-frequencies": {"model": {"frequencies": "cmt"}},
    "stock-start": {"model": {"attention_start": "xavier", "normalize_codes": False}},
    "no-denoising": {"optimizer": {"denoising_groups": 0}},
}
"""Baselines and ablations by name, as changes of ``Config``. ``plain`` never hides a sensor; ``as-published`` hides
whole modalities by zeroing alone, ``drop-only`` by leaving them out alone."""


def start_of(config: Config) -> str:
    """What a run's networks start from, ``auto`` decided: ``scratch``, ``shipped`` or a folder."""
    if config.model.start != "auto":
        return config.model.start
    usual = DataOptions()
    data = (config.data.name, config.data.classes, config.data.area, config.data.image_size)
    same = data == ("world", None, usual.area, usual.image_size)
    return "shipped" if same and replace(config.model, start="scratch") == ModelOptions() else "scratch"


def arms_of(config: Config) -> list[str]:
    """Names of all arms, ``masked`` last."""
    return [*config.arms, "masked"]


def _published(network: Any, image_size: list[int], **optimizer: Any) -> Config:
    """The official configurations' settings, on nuScenes."""
    camera_only = "camera" in network
    factors = [0.47, 0.625] if image_size[0] == 320 else [0.94, 1.25]
    return Config(
        arms=["plain"] if "voxel" in network and "lidar" not in network else [],
        data=DataOptions(
            name="nuscenes",
            root="nuscenes",
            train="train",
            test="val",
            image_size=image_size,
            sweeps=10,
            area=[-54.0, -54.0, -5.0, 54.0, 54.0, 3.0],
            in_memory=False,
        ),
        model=ModelOptions(
            network=network, box_code="cmt", frequencies="cmt", normalize_codes=False, attention_start="xavier"
        ),
        masking=MaskingOptions(camera=0.0, drop=0.0),
        augmentation=AugmentationOptions(
            rotation=0.3925 if camera_only else 0.785,
            scale=[0.95, 1.05] if camera_only else [0.9, 1.1],
            translation=0.0 if camera_only else 0.5,
            flip=0.0 if camera_only else 0.5,
            image_factors=factors,
            grid_mask=0.7,
            paste=not camera_only,
            objects=None if camera_only else "nuscenes_dbinfos_train.pkl",
            fading=5,
            balance=True,
        ),
        optimizer=OptimizerOptions(
            epochs=20,
            batch_size=optimizer.get("batch_size", 16),
            learning_rate=optimizer.get("learning_rate", 1e-4),
            peak=optimizer.get("peak", 8.0),
            rise=0.4,
            image_factor=0.01,
            image_decay_factor=5.0,
            denoising_groups=10,
        ),
        trainer=TrainerOptions(gradient_clip=35.0, precision="bf16-mixed"),
    )


PRESETS = {
    "tiny": Config(
        data=DataOptions(train_scenes=24, test_scenes=20),
        model=ModelOptions(start="auto"),
        optimizer=OptimizerOptions(epochs=5, learning_rate=5e-5),
    ),
    "small": Config(
        seeds=3,
        data=DataOptions(train_scenes=200, test_scenes=60),
        model=ModelOptions(start="auto"),
        optimizer=OptimizerOptions(epochs=4, learning_rate=5e-5),
    ),
    "small-scratch": Config(
        data=DataOptions(train_scenes=350, test_scenes=60),
        optimizer=OptimizerOptions(epochs=10, pretask_epochs=3, learning_rate=1.5e-4, rise=0.1),
    ),
    "small-drive": Config(
        data=DataOptions(
            name="drive",
            image_size=[72, 128],
            sweeps=0,
            classes=["car", "pedestrian"],
            area=[-38.4, -38.4, -3.0, 38.4, 38.4, 5.0],
            farthest=38.0,
        ),
        model=ModelOptions(queries=120, pillar_grid=[64, 64]),
        augmentation=AugmentationOptions(translation=0.5, scale=[0.9, 1.1]),
        optimizer=OptimizerOptions(epochs=24, pretask_epochs=8, batch_size=4, learning_rate=1.5e-4, rise=0.1),
    ),
    "paper": _published("cmt_voxel0075_vov_1600x640_cbgs", [640, 1600]),
    "paper-r50": _published(
        "cmt_voxel0100_r50_800x320_cbgs", [320, 800], batch_size=32, learning_rate=1.4e-4, peak=6.0
    ),
    "paper-camera": _published("cmt_camera_vov_1600x640_cbgs", [640, 1600]),
    "paper-lidar": _published("cmt_lidar_voxel0075_cbgs", [640, 1600], peak=6.0),
}
"""Presets by name; ``paper...`` are the official configurations on nuScenes, which the user has."""
for _name, _config in PRESETS.items():
    _config.preset = _name
