"""Settings of the experiment: options and presets."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from tenfold.errors import UserError
from tenfold.settings import NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from tenfold.systems.backbone_search.data.options import DetectionOptions
from tenfold.systems.backbone_search.training.options import DetectorTraining
from tenfold.training.options import TrainerOptions

Control = Literal["random", "scalar", "optuna-nsga2", "optuna-tpe", "nomap", "parent"]
Arm = Literal["uniform-width", "uniform-expansion", "mobiledet", "scratch"]
Cost = Literal["multiply_adds", "parameters", "latency_ms"]


@dataclass
class SpaceOptions:
    """Among which networks is searched.

    Attributes:
        seed: ``mobile`` (seven stages, for 320 pixels and more), ``small`` (four stages, for small inputs and CPUs), or
            ``yolox-nano``, ``yolox-tiny``, ``yolox-s``.
        weights: checkpoint to start the seed from: an official YOLOX (``yolox-...``), or for ``mobile`` a classifier
            whose backbone is mapped (torchvision's MobileNetV2, FNA, OFA); from scratch where null.
        mode: ``paper`` (width, depth, expansion) or ``full`` (kernel and operator, too); of mobile spaces.
        per_stage: one expansion, kernel and operator per stage instead of per layer; of mobile spaces.
        sizes: input sizes ``[height, width]`` that a gene chooses from, of one shape and in ascending order, the last
            that of ``data``; the size is no gene where empty; of mobile spaces.
        neck: channels of the neck at strides 8, 16 and 32; of mobile spaces.
        head: channels of the head; of mobile spaces.
    """

    seed: Literal["mobile", "small", "yolox-nano", "yolox-tiny", "yolox-s"] = "small"
    weights: str | None = None
    mode: Literal["paper", "full"] = "paper"
    per_stage: bool = True
    sizes: list[list[int]] = field(default_factory=list)
    neck: list[int] = field(default_factory=lambda: [32, 32, 32])
    head: Annotated[int, Interval(ge=8, le=2048)] = 32


@dataclass
class SearchOptions:
    """How is searched.

    Attributes:
        population: candidates of a generation.
        generations: how many.
        objective: cost that is minimised beside the score: ``multiply_adds``, ``parameters`` or ``latency_ms``.
        budget: largest cost as a share of the seed's.
        limits: further limits, such as ``{parameters: 500000}``.
        controls: other searches with as many candidates: ``random``, ``scalar``, ``optuna-nsga2``, ``optuna-tpe``,
            ``nomap`` (candidates from scratch), ``parent`` (from the nearest one of the front, tuned as it is).
        screen: draw twice as many offspring, score them as they are mapped, and tune the better half.
        mapping: ``tenfold`` or ``fna``.
        importance: which channels stay: ``l1``, ``gamma``, ``gamma_l1``, ``order``, ``random``.
        growth: how new channels begin: ``live``, ``net2net``, ``zero``.
        weight: of the cost in the control ``scalar``.
        mode: ``sync`` (same candidates for any number of workers) or ``async`` (no idle workers).
        storage: URL of the study; SQLite in the run folder where null.
        latency: how ``latency_ms`` is found where no command is given: ``onnx`` times each whole network, ``table``
            adds up its blocks' times, each measured once; a table is refused unless it orders networks as they do.
        latency_command: command with ``{onnx}`` that prints milliseconds, for ``latency_ms`` on a device.
        promote: best candidates of the front that are scored again after a longer training.
        repeats: trainings of each of them.
        pick: ``best`` score within the budget, or the ``knee`` of the front.
    """

    population: PositiveInt = 6
    generations: PositiveInt = 2
    objective: Cost = "multiply_adds"
    budget: Annotated[float, Interval(gt=0, le=2)] = 0.6
    limits: dict[Cost, PositiveFloat] = field(default_factory=dict)
    controls: list[Control] = field(default_factory=lambda: ["random"])
    screen: bool = False
    mapping: Literal["tenfold", "fna"] = "tenfold"
    importance: Literal["l1", "gamma", "gamma_l1", "order", "random"] = "l1"
    growth: Literal["live", "net2net", "zero"] = "live"
    weight: NonNegativeFloat = 0.3
    mode: Literal["sync", "async"] = "sync"
    storage: str | None = None
    latency: Literal["onnx", "table"] = "onnx"
    latency_command: str | None = None
    promote: PositiveInt = 2
    repeats: PositiveInt = 1
    pick: Literal["best", "knee"] = "best"


@dataclass
class Config:
    """Settings of a run of backbone search.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: searches, each with a seed detector of its own; what is compared is compared search by search.
        data: see ``DetectionOptions``.
        space: see ``SpaceOptions``.
        search: see ``SearchOptions``.
        seed_training: of the seed detector, see ``DetectorTraining``.
        tuning: of every candidate.
        promotion: of the front's best.
        final: of the networks that are compared and delivered.
        arms: what the found network is compared with: ``uniform-width``, ``uniform-expansion``, ``mobiledet`` (a
            MobileDet-CPU shape), all at its cost and mapped from the same seed, and ``scratch`` (itself from scratch).
        trainer: see ``tenfold.training.TrainerOptions``; changes where a run computes, not what.
        workers: processes that share the independent steps; one per free core where null.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 1
    data: DetectionOptions = field(default_factory=DetectionOptions)
    space: SpaceOptions = field(default_factory=SpaceOptions)
    search: SearchOptions = field(default_factory=SearchOptions)
    seed_training: DetectorTraining = field(default_factory=DetectorTraining)
    tuning: DetectorTraining = field(default_factory=DetectorTraining)
    promotion: DetectorTraining = field(default_factory=DetectorTraining)
    final: DetectorTraining = field(default_factory=DetectorTraining)
    arms: list[Arm] = field(default_factory=lambda: ["uniform-width", "mobiledet"])
    trainer: TrainerOptions = field(default_factory=lambda: TrainerOptions(gradient_clip=20.0))
    workers: PositiveInt | None = None

    def check(self) -> None:
        """Refuse what one setting alone can not tell.

        Raises:
            UserError: names the first.
        """
        search, space = self.search, self.space
        if search.population < 2:
            raise UserError(f"search.population must be at least 2; got {search.population}")
        if len(space.neck) != 3 or any(not 8 <= width <= 2048 for width in space.neck):
            raise UserError(f"space.neck needs three widths of 8 to 2048; got {space.neck}")
        official = space.seed.startswith("yolox-")
        self._check_sizes()
        if space.weights is not None and space.seed == "small":
            raise UserError("space.weights is for space.seed mobile, yolox-nano, yolox-tiny or yolox-s")
        if official and (space.mode != "paper" or "mobiledet" in self.arms):
            raise UserError(
                "a YOLOX space has no operators and no MobileDet shape: leave space.mode and the arm mobiledet out"
            )
        if search.screen and search.mode != "sync":
            raise UserError("search.screen compares the offspring of a whole generation: it needs search.mode sync")
        asks = search.objective == "latency_ms" or "latency_ms" in search.limits
        if search.latency_command is not None and not asks:
            raise UserError("search.latency_command has no effect: no objective and no limit asks for latency_ms")
        if search.latency == "table" and (not asks or search.latency_command is not None or official):
            raise UserError(
                "search.latency table is for a mobile space whose objective or limits ask for latency_ms, without a "
                "latency_command"
            )

    def _check_sizes(self) -> None:
        sizes, data = self.space.sizes, self.data
        if not sizes:
            return
        if self.space.seed.startswith("yolox-") or self.search.latency == "table":
            raise UserError("space.sizes is for mobile spaces, and not for search.latency table")
        right = all(len(size) == 2 and all(s % 32 == 0 and 32 <= s <= 4096 for s in size) for size in sizes)
        if not right or len(sizes) < 2 or sizes != sorted(sizes) or sizes[-1] != [data.height, data.width]:
            raise UserError(
                "space.sizes needs two or more [height, width] in multiples of 32, ascending, the last that of the "
                f"data ({data.height} x {data.width}); got {sizes}"
            )
        if any(height * data.width != width * data.height for height, width in sizes):
            raise UserError(f"space.sizes must be of one shape, height to width; got {sizes}")


ARMS: tuple[Arm, ...] = ("uniform-width", "uniform-expansion", "mobiledet", "scratch")


def _small(preset: str, data: DetectionOptions, controls: list[Control]) -> Config:
    return Config(
        preset=preset,
        seeds=3,
        data=data,
        search=SearchOptions(population=4, generations=3, controls=controls, promote=2, repeats=1),
        seed_training=DetectorTraining(epochs=30),
        tuning=DetectorTraining(epochs=1, learning_rate=0.02, warmup_epochs=0.25, average=False),
        promotion=DetectorTraining(epochs=4, learning_rate=0.02, warmup_epochs=0.5, average=False),
        final=DetectorTraining(epochs=10, learning_rate=0.02),
        arms=list(ARMS),
    )


def _paper(preset: str, seed: Literal["mobile", "yolox-nano"]) -> Config:
    """The published recipe of YOLOX-Nano for seed and final; population, generations and tuning are reconstructions."""
    recipe = DetectorTraining(
        epochs=300, batch_size=64, learning_rate=0.01, warmup_epochs=5, plain_epochs=15, augment="yolox"
    )
    return Config(
        preset=preset,
        data=DetectionOptions(
            name="coco", train="annotations/instances_train2017.json", test="annotations/instances_val2017.json",
            search_share=0.05, height=416, width=416,
        ),
        space=SpaceOptions(seed=seed, per_stage=False, neck=[64, 128, 256], head=64),
        search=SearchOptions(
            population=32, generations=20, budget=0.5, controls=[], mode="async", promote=8, repeats=2
        ),
        seed_training=recipe,
        tuning=DetectorTraining(epochs=1, batch_size=64, learning_rate=0.001, warmup_epochs=0.1, average=False),
        promotion=DetectorTraining(epochs=10, batch_size=64, learning_rate=0.005, warmup_epochs=1),
        final=recipe,
        arms=["mobiledet"] if seed == "mobile" else [],
        trainer=TrainerOptions(precision="16-mixed"),
    )  # fmt: skip


PRESETS = {
    "tiny": Config(
        data=DetectionOptions(height=64, width=96, scenes=64),
        space=SpaceOptions(neck=[16, 16, 16], head=16),
        search=SearchOptions(population=4, generations=2),
        seed_training=DetectorTraining(epochs=20),
        tuning=DetectorTraining(epochs=1, learning_rate=0.02, warmup_epochs=0.25, average=False),
        promotion=DetectorTraining(epochs=2, learning_rate=0.02, warmup_epochs=0.25, average=False),
        final=DetectorTraining(epochs=5, learning_rate=0.02),
    ),
    "small": _small("small", DetectionOptions(name="bccd"), ["random", "scalar", "optuna-nsga2"]),
    "small-nuclei": _small(
        "small-nuclei",
        DetectionOptions(name="nuclei", height=128, width=128, most_detections=400),
        ["random", "scalar", "optuna-nsga2"],
    ),
    "paper": _paper("paper", "mobile"),
    "paper-yolox": _paper("paper-yolox", "yolox-nano"),
}
"""Presets by name. ``paper...`` are the published settings as far as they are known, on data that the user has."""
