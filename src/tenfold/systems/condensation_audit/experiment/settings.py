"""Settings of the experiment: data, methods, attacks, presets."""

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.data.options import ImageOptions
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.names import CONDENSERS, DEFENCES, METHODS
from tenfold.training import TrainerOptions


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

    epochs: int = 300
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    decay_at: list[float] = field(default_factory=lambda: [0.5])
    augmentation: str = ""
    networks: int = 5
    full_epochs: int = 10


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

    method: str = "dm"
    images_per_class: int = 10
    target: int = 0
    size: int = 2
    portion: float = 0.05
    updated_portion: float = 0.01
    trigger_steps: int = 300
    alpha: float = 10.0
    ori: float = 1.0
    defences: list[str] = field(default_factory=lambda: list(DEFENCES))
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
        workers: processes that share the run's steps; the numbers do not depend on it.
        data: see `ImageOptions`.
        network: see `NetworkOptions`.
        training: see `TrainingOptions`.
        attack: see `AttackOptions`.
        trainer: see `TrainerOptions`; changes where a run computes, not what.
    """

    preset: str = "tiny"
    seed: int = 0
    seeds: int = 3
    images_per_class: list[int] = field(default_factory=lambda: [1, 10])
    methods: list[str] = field(default_factory=lambda: ["random", "herding", "k-center", *CONDENSERS])
    settings: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    zca_eps: float | None = None
    held_out: int = 300
    workers: int = 1
    data: ImageOptions = field(default_factory=ImageOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    attack: AttackOptions = field(default_factory=AttackOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)


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


def settings_of(config: Config, method: str, images_per_class: int) -> dict[str, Any]:
    """Settings of a condenser for sets of a size.

    Raises:
        UserError: they are not a table of names.
    """
    found = config.settings.get(method, {})
    if not isinstance(found, dict):
        raise UserError(f"settings.{method} must be a table such as {{iterations: 200}}; got {found!r}")
    general = {name: value for name, value in found.items() if not str(name).isdigit()}
    special: dict[str, Any] = next((value for name, value in found.items() if str(name) == str(images_per_class)), {})
    return {**general, **special}


def check(config: Config) -> None:
    """Refuse settings that would fail late.

    Raises:
        UserError: a name that does not exist, or a number out of range.
    """
    for name in (*config.methods, config.attack.method):
        if name not in METHODS:
            raise UserError(f"there is no method {name!r}; there are: {', '.join(METHODS)}")
    for name in config.settings:
        if name not in METHODS:
            raise UserError(f"settings are of a method; there is no {name!r}")
    for name in config.attack.ablations:
        if name not in ABLATIONS:
            raise UserError(f"there is no ablation {name!r}; there are: {', '.join(ABLATIONS)}")
    for name, values in config.attack.ablations.items():
        if not isinstance(values, list):
            raise UserError(f"attack.ablations.{name} must be a list of values; got {values!r}")
    for name in config.attack.defences:
        if name not in DEFENCES:
            raise UserError(f"there is no defence {name!r}; there are: {', '.join(DEFENCES)}")
    if config.attack.method not in CONDENSERS:
        raise UserError(f"attack.method must be a condenser: {', '.join(CONDENSERS)}; got {config.attack.method!r}")
    if config.seeds < 1 or not config.images_per_class or config.training.networks < 1:
        raise UserError("seeds, images_per_class and training.networks must hold at least one")


_SMALL_NETWORK = NetworkOptions("convnet", {"width": 16, "depth": 2})

_TINY = Config(
    preset="tiny",
    seeds=1,
    images_per_class=[10],
    methods=["random", "herding", "dm", "dc"],
    data=ImageOptions(name="digits", validation=300),
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
    workers=2,
    data=ImageOptions(name="fashion-mnist", validation=1000, resize=14),
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
_PAPER_DATA = ImageOptions(name="cifar10", validation=1000)
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
    data=ImageOptions(name="cifar10", validation=1000, resize=32),
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
        data=ImageOptions(name="cifar100", validation=1000),
        network=NetworkOptions("convnet"),
        training=TrainingOptions(epochs=1000, augmentation=_FULL, networks=5, full_epochs=50),
        settings={"mtt": {"steps": 20, "expert_epochs": 3, "max_start": 20}},
        attack=replace(_ATTACKED, method="mtt", ablations={}),
    ),
}
"""Presets by name; the ``paper`` ones need a GPU and the data in ``data.root``."""
