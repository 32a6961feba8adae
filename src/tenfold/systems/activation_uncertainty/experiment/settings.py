"""Settings of the experiment: options, tasks, presets."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval

from tenfold.errors import UserError
from tenfold.settings import NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from tenfold.training.options import TrainerOptions

Passes = Annotated[int, Interval(ge=2, le=1_000_000)]
ImageData = Literal[
    "digits",
    "mnist",
    "fashion-mnist",
    "emnist-balanced",
    "emnist-byclass",
    "emnist-bymerge",
    "emnist-letters",
    "emnist-digits",
    "emnist-mnist",
    "cifar10",
    "cifar100",
    "imagenet",
    "folder",
]
TableData = Literal["ratings", "movielens-100k", "movielens-1m", "movielens-25m", "criteo"]


@dataclass
class DataOptions:
    """Which data, and how many of them are kept for the estimator.

    Attributes:
        name: images: ``digits`` (embedded), ``mnist``, ``fashion-mnist``, ``emnist-balanced`` and its other splits,
            ``cifar10``, ``cifar100``, ``imagenet``, ``folder``; tables: ``ratings`` (generated, in MovieLens' layout),
            ``movielens-100k``, ``movielens-1m``, ``movielens-25m``, ``criteo`` (train.txt, or a .csv with a header).
        root: folder of the data (for ``criteo`` also the file); ``TENFOLD_DATA`` where null.
        auxiliary: rows taken from the training split for the estimator; the main model never sees them. Where null,
            what the presets were measured with, or a fifth of other data.
        rows: read only so many rows of a table, all where null.
        threshold: for ratings, predict whether there are at least so many stars, instead of how many.
        hashed: for ``criteo``, hash categories into so many places each instead of counting them.
        image_size: side of the squares cut out of the images of ``folder`` and ``imagenet``; 224 where null.
        unreadable: of a ``folder``: refuse, or leave out, images that cannot be read.
        workers: processes that decode image files.
    """

    name: ImageData | TableData = "digits"
    root: str | None = None
    auxiliary: PositiveInt | None = None
    rows: PositiveInt | None = None
    threshold: float | None = None
    hashed: Annotated[int, Interval(ge=2, le=2**31)] | None = None
    image_size: PositiveInt | None = None
    unreadable: Literal["refuse", "leave-out"] = "refuse"
    workers: Annotated[int, Interval(ge=0, le=1024)] = 0

    def check(self) -> None:
        """Refuse settings without effect on the data that are named.

        Raises:
            UserError: names the setting, and what to do.
        """
        table = self.name in get_args(TableData)
        fits = {
            "rows": table,
            "threshold": table and self.name != "criteo",
            "hashed": self.name == "criteo",
            "image_size": self.name in ("folder", "imagenet"),
            "root": self.name not in ("digits", "ratings"),
        }
        for setting, effect in fits.items():
            value = getattr(self, setting)
            if value is not None and not effect:
                raise UserError(
                    f"data.{setting} {value!r} has no effect on {self.name!r}: leave it out, or name the data it is "
                    "for with --data.name"
                )
        if self.unreadable != "refuse" and self.name != "folder":
            raise UserError(f"data.unreadable is for data.name folder, not for {self.name!r}")


@dataclass
class ModelOptions:
    """Which main model.

    Attributes:
        name: ``mlp`` or ``cnn`` for images, ``ratings`` for MovieLens, ``clicks`` for Criteo; ``torchvision/NAME`` or
            ``timm/NAME`` for images; ``factory``, for a network of your own.
        factory: ``package.module:function``, called with ``num_classes`` for images and ``sizes`` for tables.
        arguments: further arguments of the network, such as ``{widths: [64, 32]}``.
        weights: checkpoint to start from (safetensors, or a torch file of plain tensors).
    """

    name: str = "mlp"
    factory: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass
class DropoutOptions:
    """Where and how much is dropped, in training and in the passes that make the labels.

    Attributes:
        rate: probability of dropping a unit in networks that are made here; for others, rate in the passes, or null
            for their own.
        places: ``all``, ``first``, ``last``, or a list of modules, in the passes.
        add: modules after which units are dropped in the passes although the network has no dropout there.
        drop_path: whether stochastic depth counts as dropout.
    """

    rate: Annotated[float, Interval(gt=0, lt=1)] | None = 0.2
    places: str | list[str] = "all"
    add: list[str] = field(default_factory=list)
    drop_path: bool = False


@dataclass
class EstimatorOptions:
    """Labels and the estimator.

    Attributes:
        target: ``auto`` (class for images, regression or binary for tables), ``class``, ``mean-class``,
            ``mutual-information``, ``kl``, ``regression``, ``binary`` or ``binary-logit``.
        passes: T of the labels that the estimator learns.
        test_passes: T of the labels that it is measured against.
        taps: ``auto``, or modules whose activations are read.
        form: ``value``, ``on-off`` or ``both``.
        pool: ``auto`` or ``class-token``.
        loss: ``auto``, ``mse_std``, ``mse_var`` or ``gamma``.
        hidden: widths of the estimator.
        tolerance: how far below all layers' R2 the chosen layers may be, on validation rows.
    """

    target: Literal[
        "auto", "class", "mean-class", "mutual-information", "kl", "regression", "binary", "binary-logit"
    ] = "auto"
    passes: Passes = 100
    test_passes: Passes = 100
    taps: str | list[str] = "auto"
    form: Literal["value", "on-off", "both"] = "value"
    pool: Literal["auto", "class-token"] = "auto"
    loss: Literal["auto", "mse_std", "mse_var", "gamma"] = "auto"
    hidden: list[PositiveInt] = field(default_factory=lambda: [100, 50])
    tolerance: NonNegativeFloat = 0.01


@dataclass
class OptimizerOptions:
    """How the main model learns (Adam).

    Attributes:
        epochs: passes over the training split.
        batch_size: rows per step, over all processes together.
        learning_rate: of Adam.
        weight_decay: of Adam.
    """

    epochs: PositiveInt = 15
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0


@dataclass
class Config:
    """Settings of a run of activation uncertainty.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds.
        companions: further tasks measured in the same run: names of ``TASKS``.
        ensemble: members of the ensemble whose spread is estimated, too (paper B); 0 for none.
        joint: whether the estimator is also trained jointly with the main model (paper A).
        ablations: whether rates, label passes and losses, auxiliary rows and shifts are varied on the first seed.
        data: see ``DataOptions``.
        model: see ``ModelOptions``.
        dropout: see ``DropoutOptions``.
        estimator: see ``EstimatorOptions``.
        optimizer: see ``OptimizerOptions``.
        trainer: see ``TrainerOptions``; changes where a run computes, not what.
        workers: processes that share tasks and seeds; one per free core where null. Changes no number.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 2
    companions: list[str] = field(default_factory=list)
    ensemble: Annotated[int, Interval(ge=0, le=1000)] = 0
    joint: bool = False
    ablations: bool = False
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    dropout: DropoutOptions = field(default_factory=DropoutOptions)
    estimator: EstimatorOptions = field(default_factory=EstimatorOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=lambda: TrainerOptions(threads=1))
    workers: PositiveInt | None = None

    def check(self) -> None:
        """What the settings' types do not say.

        Raises:
            UserError: a companion that there is not, an ensemble of one, or settings that go with other ones.
        """
        unknown = [name for name in self.companions if name not in TASKS]
        if unknown:
            raise UserError(f"companions: there is no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
        if self.data.name in self.companions or len(set(self.companions)) < len(self.companions):
            raise UserError("companions: each task once, and not the run's own")
        if self.ensemble == 1:
            raise UserError("ensemble is a number of members, at least 2, or 0 for none; got 1")
        if (self.model.name == "factory") != (self.model.factory is not None):
            raise UserError("model.factory goes with model.name factory: give both, or none")
        if self.dropout.add and self.dropout.rate is None:
            raise UserError("dropout.add needs dropout.rate: how much is dropped there")


@dataclass(frozen=True)
class TaskSettings:
    """One main model and its uncertainty, as a run measures it."""

    name: str
    data: DataOptions
    model: ModelOptions
    dropout: DropoutOptions
    optimizer: OptimizerOptions

    def at_rate(self, rate: float | None) -> "TaskSettings":
        """The same with another dropout rate; its own where ``None``."""
        return self if rate is None else replace(self, dropout=replace(self.dropout, rate=rate))


_RATINGS_MODEL = ModelOptions(name="ratings", arguments={"widths": [64, 32, 16]})
_RATINGS_OPTIMIZER = OptimizerOptions(epochs=10, batch_size=256)

TASKS = {
    "digits": TaskSettings(
        "digits",
        DataOptions(),
        ModelOptions(arguments={"widths": [64, 32]}),
        DropoutOptions(),
        OptimizerOptions(epochs=20, batch_size=64),
    ),
    "ratings": TaskSettings(
        "ratings",
        DataOptions(name="ratings"),
        _RATINGS_MODEL,
        DropoutOptions(rate=0.1),
        _RATINGS_OPTIMIZER,
    ),
    "ratings-binary": TaskSettings(
        "ratings-binary",
        DataOptions(name="ratings", threshold=4.0),
        _RATINGS_MODEL,
        DropoutOptions(rate=0.1),
        _RATINGS_OPTIMIZER,
    ),
    "fashion-cnn": TaskSettings(
        "fashion-cnn",
        DataOptions(name="fashion-mnist"),
        ModelOptions(name="cnn"),
        DropoutOptions(rate=0.25),
        OptimizerOptions(epochs=6),
    ),
}
"""Tasks by name that a run may measure beside its own."""


def tasks_of(config: Config) -> list[TaskSettings]:
    """The run's own task first, then its companions."""
    own = TaskSettings(config.data.name, config.data, config.model, config.dropout, config.optimizer)
    return [own, *(TASKS[name] for name in config.companions)]


PRESETS = {
    "tiny": Config(
        model=TASKS["digits"].model,
        optimizer=TASKS["digits"].optimizer,
    ),
    "small": Config(
        preset="small",
        seeds=3,
        companions=["ratings", "ratings-binary"],
        ensemble=8,
        joint=True,
        ablations=True,
        data=DataOptions(name="fashion-mnist"),
    ),
    "small-cnn": Config(
        preset="small-cnn",
        seeds=3,
        data=DataOptions(name="fashion-mnist"),
        model=ModelOptions(name="cnn"),
        dropout=DropoutOptions(rate=0.25),
        optimizer=OptimizerOptions(epochs=6),
    ),
    "paper": Config(
        preset="paper",
        seeds=3,
        ensemble=10,
        joint=True,
        ablations=True,
        data=DataOptions(name="movielens-1m"),
        model=ModelOptions(name="ratings"),
        dropout=DropoutOptions(rate=0.1),
        optimizer=OptimizerOptions(epochs=10, batch_size=1024),
        trainer=TrainerOptions(),
    ),
    "paper-criteo": Config(
        preset="paper-criteo",
        seeds=1,
        data=DataOptions(name="criteo"),
        model=ModelOptions(name="clicks"),
        dropout=DropoutOptions(rate=0.1),
        optimizer=OptimizerOptions(epochs=2, batch_size=4096),
        trainer=TrainerOptions(),
    ),
    "paper-emnist": Config(
        preset="paper-emnist",
        seeds=3,
        ablations=True,
        data=DataOptions(name="emnist-balanced"),
        model=ModelOptions(name="cnn"),
        dropout=DropoutOptions(rate=0.25),
        optimizer=OptimizerOptions(epochs=10, batch_size=256),
        trainer=TrainerOptions(),
    ),
}
"""Presets by name. ``paper...`` are the papers' data, which the user has; the papers' settings are not known."""
