"""Settings of the experiment: data, methods, attacks, presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.data.options import FILE_SETS, ImageOptions
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
from tenfold.systems.condensation_audit.names import CONDENSERS, DEFENCES, METHODS, Condenser, Defence, Method
from tenfold.training.options import TrainerOptions

FILES_SIDE = 32
"""Side to which image files are brought where nothing is said."""

# Of a preset's own data; another data set keeps its own side.
_SIDES = {("small", "fashion-mnist"): 14}


@dataclass
class NetworkOptions:
    """The network that condenses and that is trained on the sets.

    Attributes:
        name: ``convnet``, ``convnet_baadd``, ``alexnet_baadd``, ``mlp``, ``lenet``, ``alexnet``, ``vgg11``,
            ``resnet18``, ``torchvision/NAME``, ``timm/NAME``; or ``factory``, for a network of your own.
        arguments: its further arguments, such as ``{width: 16, depth: 2}``; for ``factory``,
            ``{factory: package.module:function}``, which is called with ``num_classes``.
    """

    name: str = "convnet"
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingOptions:
    """How networks are trained on every set, condensed or selected.

    Attributes:
        epochs: passes over the set.
        learning_rate: of SGD.
        momentum: of it.
        weight_decay: of it.
        batch_size: images a step.
        decay_at: fractions of the epochs after which the learning rate is divided by ten.
        augmentation: a DSA strategy; none where empty.
        networks: networks per set and seed.
        full_epochs: passes over all real data, for the yardstick; no yardstick where 0.
    """

    epochs: PositiveInt = 300
    learning_rate: PositiveFloat = 0.01
    momentum: ProperShare = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    batch_size: PositiveInt = 256
    decay_at: list[Share] = field(default_factory=lambda: [0.5])
    augmentation: str = ""
    networks: PositiveInt = 5
    full_epochs: Count = 10


@dataclass
class AttackOptions:
    """The attacks that the defences are measured with.

    Attributes:
        method: condenser that is attacked.
        images_per_class: of the attacked sets.
        target: class that the trigger gives.
        size: side of the trigger in pixels.
        portion: share of the images that ``naive`` poisons.
        updated_portion: share that ``doorping`` poisons.
        trigger_steps: steps of one trigger update, at most.
        alpha: how many times the present activation a trigger update aims at.
        ori: share of the data that the attacker holds.
        defences: those that are run on every set, clean and poisoned: of ``names.DEFENCES``.
        ablations: what is varied, one seed each, with its values: ``{portion: [0.01, 0.1]}``; all values where the list
            is empty. Axes: ``portion``, ``size``, ``images_per_class``, ``start``, ``method``, ``alpha``, ``topk``,
            ``target``, ``trigger``, ``ori``.
    """

    method: Condenser = "dm"
    images_per_class: PositiveInt = 10
    target: Count = 0
    size: PositiveInt = 2
    portion: PositiveShare = 0.05
    updated_portion: PositiveShare = 0.01
    trigger_steps: PositiveInt = 300
    alpha: PositiveFloat = 10.0
    ori: PositiveShare = 1.0
    defences: list[Defence] = field(default_factory=lambda: list(DEFENCES))
    ablations: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Config:
    """Settings of a run of condensation and its audit.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        images_per_class: sizes of the sets that are compared.
        methods: condensers and selections that are compared; ``random`` is always there.
        settings: of the condensers, such as ``{dm: {iterations: 200}}``; a second level by images per class overrides,
            as in ``{dc: {iterations: 10, "1": {iterations: 100}}}``.
        transfer: further networks that are trained on the first seed's sets and under their attack, by name with their
            arguments.
        zca_eps: whiten the images with this eps, as the published trajectory matching does; not where null.
        held_out: clean validation images that the audit may use.
        workers: processes that share the run's steps, one per free core where null; the numbers do not depend on it.
        data: see `ImageOptions`. Where it gives no side, images of a folder are squeezed to 32 x 32, and ``small``
            brings those of Fashion-MNIST to 14 x 14.
        network: see `NetworkOptions`.
        training: see `TrainingOptions`.
        attack: see `AttackOptions`.
        trainer: see `TrainerOptions`; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 3
    images_per_class: list[PositiveInt] = field(default_factory=lambda: [1, 10])
    methods: list[Method] = field(default_factory=lambda: ["random", "herding", "k-center", *CONDENSERS])
    settings: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    zca_eps: PositiveFloat | None = None
    held_out: PositiveInt = 300
    workers: PositiveInt | None = None
    data: ImageOptions = field(default_factory=ImageOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    attack: AttackOptions = field(default_factory=AttackOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    @property
    def images(self) -> ImageOptions:
        """The settings of the data, at the side that is usual here where they say none."""
        said = self.data.resize is not None or self.data.image_size is not None
        side = FILES_SIDE if self.data.name in FILE_SETS else _SIDES.get((self.preset, self.data.name))
        return self.data if said or side is None else replace(self.data, resize=side)

    def check(self) -> None:
        """Refuse settings that would fail late.

        Raises:
            UserError: a name that does not exist, a setting without effect, or one that does not fit another.
        """
        if not self.images_per_class:
            raise UserError("images_per_class must hold at least one size")
        for name, values in self.settings.items():
            if name not in METHODS:
                raise UserError(f"settings are of a method; there is no {name!r}")
            if not isinstance(values, dict):
                raise UserError(f"settings.{name} must be a table such as {{iterations: 200}}; got {values!r}")
        for axis, tried in self.attack.ablations.items():
            if axis not in ABLATIONS:
                raise UserError(f"there is no ablation {axis!r}; there are: {', '.join(ABLATIONS)}")
            if not isinstance(tried, list):
                raise UserError(f"attack.ablations.{axis} must be a list of values; got {tried!r}")
            _check_values(axis, tried)
        for name, arguments in self.transfer.items():
            if not isinstance(arguments, dict):
                raise UserError(f"transfer.{name} must be a table of arguments, such as {{}}; got {arguments!r}")
        if self.trainer.devices != 1 or self.trainer.num_nodes != 1:
            raise UserError(
                "condensation shares its steps, not its batches: use --workers instead of --trainer.devices"
            )


ABLATIONS: dict[str, tuple[Any, ...]] = {
    "portion": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    "size": (1, 2, 3, 4),
    "images_per_class": (1, 10, 50),
    "start": ("real", "noise"),
    "method": CONDENSERS,
    "target": (1, 4, 9),
    "trigger": ("white", "random", "blend"),
    "alpha": (2.0, 5.0, 10.0, 50.0),
    "topk": (1, 3, 10),
    "ori": (0.1, 0.5, 1.0),
}
"""What an ablation varies, and all its values."""


def _check_values(axis: str, values: list[Any]) -> None:
    """Values of an axis are of the kind of its own, and in its range."""
    known = ABLATIONS[axis]
    for value in values:
        if isinstance(known[0], str):
            fits = value in known
        elif axis == "target":
            fits = type(value) is int and value >= 0
        elif isinstance(known[0], int):
            fits = type(value) is int and value >= 1
        else:
            share = axis in ("portion", "ori")
            fits = isinstance(value, int | float) and value > 0 and (value <= 1 or not share)
        if not fits:
            raise UserError(f"attack.ablations.{axis} holds {value!r}; it takes values such as {known}")


def settings_of(config: Config, method: str, images_per_class: int) -> dict[str, Any]:
    """Settings of a condenser for sets of a size."""
    found = config.settings.get(method, {})
    general = {name: value for name, value in found.items() if not str(name).isdigit()}
    special: dict[str, Any] = next((value for name, value in found.items() if str(name) == str(images_per_class)), {})
    return {**general, **special}


_SMALL_NETWORK = NetworkOptions("convnet", {"width": 16, "depth": 2})

_TINY = Config(
    preset="tiny",
    seeds=1,
    images_per_class=[10],
    methods=["random", "herding", "dm", "dc"],
    data=ImageOptions(name="digits"),
    network=_SMALL_NETWORK,
    training=TrainingOptions(epochs=80, learning_rate=0.02, networks=3, full_epochs=10),
    settings={
        "dm": {"iterations": 200, "real_batch": 64, "image_rate": 10.0, "strategy": ""},
        "dc": {"iterations": 4, "real_batch": 64, "start": "real", "outer": 5, "inner": 10},
    },
    attack=AttackOptions(
        portion=0.1,
        updated_portion=0.02,
        trigger_steps=150,
        defences=[name for name in DEFENCES if name != "neuron stimulation (ABS)"],
    ),
)

_SMALL = Config(
    preset="small",
    seeds=3,
    data=ImageOptions(name="fashion-mnist"),
    network=_SMALL_NETWORK,
    training=TrainingOptions(epochs=200, learning_rate=0.02, networks=3, full_epochs=9),
    methods=["random", "herding", "k-center", *CONDENSERS],
    settings={  # chosen on validation images: benchmarks/condensation_settings.py
        "dm": {"iterations": 200, "real_batch": 64, "image_rate": 10.0},
        "dc": {"iterations": 10, "outer": 5, "inner": 10, "real_batch": 64, "start": "real", "image_rate": 0.1},
        "dsa": {"iterations": 10, "outer": 5, "inner": 10, "real_batch": 64, "image_rate": 0.1},
        "mtt": {
            "iterations": 60,
            "steps": 10,
            "expert_epochs": 1,
            "max_start": 4,
            "experts": 3,
            "expert_length": 5,
            "expert_batch": 128,
            "strategy": "",
            "image_rate": 1000.0,
            "rate": 0.02,
        },
        "dd": {
            "iterations": 60,
            "steps": 1,
            "epochs": 10,
            "start": "real",
            "batch_size": 256,
            "image_rate": 0.03,
        },
    },
    transfer={"mlp": {}, "lenet": {}},
    attack=AttackOptions(ablations={"portion": [0.01, 0.2], "size": [1, 4]}),
)

_FULL = "color_crop_cutout_flip_scale_rotate"
_PAPER_DATA = ImageOptions(name="cifar10")
_ATTACKED = AttackOptions(
    portion=0.01,
    updated_portion=0.01,
    size=2,
    trigger_steps=1000,
    ablations={"portion": [], "size": [], "alpha": [], "topk": [], "ori": []},
)
_TRANSFER: dict[str, Any] = {"vgg11": {}, "resnet18": {"norm": "batch"}}
_PAPER = Config(
    preset="paper",
    seeds=3,
    images_per_class=[10],
    methods=["random", "herding", "dc"],
    data=ImageOptions(name="cifar10"),
    network=NetworkOptions("convnet_baadd"),
    training=TrainingOptions(epochs=300, learning_rate=0.01, networks=10, full_epochs=30),
    settings={"dc": {}},
    transfer=_TRANSFER,
    attack=replace(_ATTACKED, method="dc"),
)

PRESETS = {
    "tiny": _TINY,
    "small": _SMALL,
    # The attacks' publication: gradient matching without augmentation, ten images per class, no norm.
    "paper": _PAPER,
    "paper-alexnet": replace(_PAPER, preset="paper-alexnet", network=NetworkOptions("alexnet_baadd")),
    # The attacks' publication: dataset distillation tuned for one known initialisation.
    "paper-dd": replace(
        _PAPER,
        preset="paper-dd",
        network=NetworkOptions("alexnet_baadd"),
        methods=["random", "dd"],
        settings={"dd": {"initialisation": "known", "steps": 10, "epochs": 3, "rate": 0.001}},
        attack=replace(_ATTACKED, method="dd"),
    ),
    # The condensers' own publications.
    "paper-condensers": replace(
        _PAPER,
        preset="paper-condensers",
        images_per_class=[1, 10, 50],
        methods=["random", "herding", "k-center", "dc", "dsa", "dm"],
        data=_PAPER_DATA,
        network=NetworkOptions("convnet"),
        training=TrainingOptions(epochs=1000, augmentation=_FULL, networks=10, full_epochs=30),
        settings={"dc": {}, "dsa": {}, "dm": {}},
        transfer={"mlp": {}, "lenet": {}, "alexnet": {}, "vgg11": {}, "resnet18": {}},
        attack=replace(_ATTACKED, method="dm", ablations={}),
    ),
    "paper-trajectories": replace(
        _PAPER,
        preset="paper-trajectories",
        images_per_class=[1],
        methods=["random", "mtt"],
        zca_eps=0.1,
        data=ImageOptions(name="cifar100"),
        network=NetworkOptions("convnet"),
        training=TrainingOptions(epochs=1000, augmentation=_FULL, networks=5, full_epochs=50),
        settings={"mtt": {"steps": 20, "expert_epochs": 3, "max_start": 20}},
        attack=replace(_ATTACKED, method="mtt", ablations={}),
    ),
}
"""Presets by name; the ``paper`` ones need a GPU and the data in ``data.root``."""
