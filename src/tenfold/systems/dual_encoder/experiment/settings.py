"""Settings of the experiment: data, encoders, teacher, distillation, presets."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from tenfold.errors import UserError
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, ProperShare, Seed
from tenfold.training.options import TrainerOptions

ArmName = Literal["hard", "soft", "uni-modal", "dide", "t2v", "v2t", "all-maps", "every-layer", "all-rows", "dide-hard"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)
SetName = Literal["grid-qa", "easy-vqa", "shapes", "nlvr", "vqa-v2", "nlvr2", "snli-ve", "arrow", "folder"]
MapName = Literal["t2v", "v2t", "t2t", "v2v"]


@dataclass
class DataOptions:
    """What is asked.

    Attributes:
        name: ``grid-qa`` (drawn), ``easy-vqa`` (in a package of that name), ``shapes`` and ``nlvr`` (under
            TENFOLD_DATA), ``vqa-v2``, ``nlvr2``, ``snli-ve`` (their published layouts), ``arrow`` (tables of the ViLT
            family), or ``folder``: a folder of images of your own with a CSV of questions.
        also: further sets, ``grid-qa`` or ``easy-vqa``, on which the arms are trained, too, with the same settings but
            for the size of the images.
        root: folder of the data.
        file: for ``folder``, the CSV file of image, question, answer, relative to root; for ``arrow``, the tables'
            beginning: ``vqav2``, ``nlvr2`` or ``snli_ve``.
        side: cells per row of ``grid-qa``: 1, 2 or 3.
        scenes: training scenes of ``grid-qa``; of others the training questions at most, 0 for all.
        questions_per_scene: of ``grid-qa``.
        validation: validation questions of ``grid-qa``, ``easy-vqa`` and ``folder``, which have no such part.
        test: test questions of ``grid-qa`` and ``folder``; of others at most, 0 for all.
        least_count: of an answer of ``vqa-v2`` in training and validation, to be in the list.
    """

    name: SetName = "grid-qa"
    also: list[Literal["grid-qa", "easy-vqa"]] = field(default_factory=list)
    root: str | None = None
    file: str | None = None
    side: PositiveInt = 2
    scenes: Count = 20000
    questions_per_scene: PositiveInt = 2
    validation: PositiveInt = 500
    test: Count = 1500
    least_count: PositiveInt = 9


@dataclass
class ModelOptions:
    """Sizes of the teacher and of both towers of the student.

    Attributes:
        width: D.
        layers: of the teacher.
        student_layers: of each tower; as the teacher's where null.
        heads: attention heads.
        patch: side of a patch in pixels; where null the set's own, or 32.
        shorter: shorter side of the images in pixels; where null the set's own, or 384.
        longest: longer side at most.
        square: whether images are squeezed to ``shorter`` x ``shorter``.
        max_tokens: longest question.
        dropout: in training.
        vocabulary: BERT's vocab.txt; where null, the words of the training questions.
        sharp: whether networks that start from nothing get larger embeddings; see ``sharpen``.
        start: of the towers: ``teacher``, ``random``, or a checkpoint in ViLT's form.
        augment: whether training images go through ViLT's RandAugment.
    """

    width: PositiveInt = 64
    layers: PositiveInt = 3
    student_layers: PositiveInt | None = None
    heads: PositiveInt = 8
    patch: PositiveInt | None = None
    shorter: PositiveInt | None = None
    longest: PositiveInt = 639
    square: bool = True
    max_tokens: PositiveInt = 40
    dropout: ProperShare = 0.0
    vocabulary: str | None = None
    sharp: bool = True
    start: str = "teacher"
    augment: bool = False


@dataclass
class StageOptions:
    """One training.

    Attributes:
        steps: optimizer steps, rounded to whole epochs where they are many.
        batch_size: questions of a step.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises; it falls linearly afterwards.
        classifier_factor: times the rate, for the task classifier.
    """

    steps: PositiveInt = 1500
    batch_size: PositiveInt = 64
    learning_rate: PositiveFloat = 2e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup: ProperShare = 0.1
    classifier_factor: PositiveFloat = 1.0


@dataclass
class TeacherOptions(StageOptions):
    """The fusion encoder.

    Attributes:
        weights: of a teacher that is trained already: a model folder, a ViLT checkpoint, or a folder of transformers'
            ViLT; one is trained where null.
    """

    weights: str | None = None


@dataclass
class DistilOptions:
    """What the student learns.

    Attributes:
        soft: weight of the teacher's predictions.
        attention: weight of its attention maps.
        hard: weight of the labels in the arms that learn from the teacher; 0 as published.
        temperature: of the predictions.
        query_rows: ``valid``, or ``all`` as the official program averages.
        heads: relation heads, for unequal numbers of heads; the networks' own where null.
    """

    soft: NonNegativeFloat = 1.0
    attention: PositiveFloat = 1.0
    hard: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 1.0
    query_rows: Literal["valid", "all"] = "valid"
    heads: PositiveInt | None = None


@dataclass
class Config:
    """Settings of a run of the dual encoder.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; each has a teacher of its own, and arms are compared seed by seed.
        arms: what is trained, of ``ARMS``; ``dide`` is delivered.
        data: see ``DataOptions``.
        model: see ``ModelOptions``.
        teacher: see ``TeacherOptions``.
        optimizer: of the students, see ``StageOptions``.
        distil: see ``DistilOptions``.
        trainer: see ``tenfold.training.options.TrainerOptions``; changes where a run computes, not what.
        workers: processes that share the independent steps; one per free core where null.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 1
    arms: list[ArmName] = field(default_factory=lambda: ["soft", "dide"])
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    optimizer: StageOptions = field(default_factory=lambda: StageOptions(steps=2500))
    distil: DistilOptions = field(default_factory=DistilOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    workers: PositiveInt | None = None

    def check(self) -> None:
        """Refuse settings that make no sense together.

        Raises:
            UserError: naming the setting.
        """
        data, model = self.data, self.model
        if "dide" not in self.arms:
            raise UserError("--arms must hold 'dide', which the others are measured against and which is delivered")
        twice = next((arm for arm in self.arms if self.arms.count(arm) > 1), None)
        if twice is not None or data.name in data.also:
            raise UserError(f"--{'arms' if twice else 'data.also'} names {twice or data.name!r} twice")
        if model.width % model.heads:
            raise UserError(f"model.width {model.width} is not a multiple of model.heads {model.heads}")
        if data.name == "grid-qa" and data.side > 3:
            raise UserError(f"data.side must be 1, 2 or 3; got {data.side}")
        if data.name == "grid-qa" and min(data.scenes, data.test) < 1:
            raise UserError("grid-qa is drawn: data.scenes and data.test must be at least 1")
        if data.name in ("grid-qa", "easy-vqa") and (data.root or data.file):
            raise UserError(
                f"data.root {data.root or data.file!r} has no effect on {data.name}: name yours with --data.name"
            )
        if data.name in ("folder", "arrow") and not (data.root and data.file):
            raise UserError(f"{data.name} needs --data.root DIR and --data.file")
        if data.also and data.name not in ("grid-qa", "easy-vqa"):
            raise UserError("--data.also goes with grid-qa or easy-vqa")
        if model.shorter is not None and (model.shorter % (model.patch or 1) or model.longest < model.shorter):
            raise UserError("model.shorter must be whole patches, and at most model.longest")
        if model.student_layers not in (None, model.layers) and model.start == "teacher":
            raise UserError("towers of another depth cannot start from the teacher: --model.start random")
        if self.distil.heads is not None and model.width % self.distil.heads:
            raise UserError(f"distil.heads {self.distil.heads} do not divide the width {model.width}")


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        soft: weight of the teacher's predictions.
        attention: weight of the maps.
        hard: weight of the labels.
        maps: which maps are compared.
        every_layer: compare all layers, else the last.
        query_rows: see ``DistilOptions``.
    """

    soft: float
    attention: float
    hard: float
    maps: tuple[MapName, ...] = ("t2v", "v2t")
    every_layer: bool = False
    query_rows: Literal["valid", "all"] = "valid"


def arms_of(config: Config) -> dict[str, Arm]:
    """The arms of a run by name, with their effective weights."""
    options = config.distil
    soft, attention, hard, rows = options.soft, options.attention, options.hard, options.query_rows
    both: tuple[MapName, ...] = ("t2v", "v2t")
    known = {
        "hard": Arm(0, 0, 1),
        "soft": Arm(soft or 1, 0, hard),
        "uni-modal": Arm(soft, attention, hard, ("t2t", "v2v"), query_rows=rows),
        "dide": Arm(soft, attention, hard, both, query_rows=rows),
        "t2v": Arm(soft, attention, hard, ("t2v",), query_rows=rows),
        "v2t": Arm(soft, attention, hard, ("v2t",), query_rows=rows),
        "all-maps": Arm(soft, attention, hard, ("t2v", "v2t", "t2t", "v2v"), query_rows=rows),
        "every-layer": Arm(soft, attention, hard, both, every_layer=True, query_rows=rows),
        "all-rows": Arm(soft, attention, hard, both, query_rows="all"),
        "dide-hard": Arm(soft, attention, hard or 1, both, query_rows=rows),
    }
    return {name: known[name] for name in config.arms}


_CUT = TrainerOptions(gradient_clip=1.0)
"""Of networks that start from nothing; the official program does not cut gradients."""
PRESETS = {
    "tiny": Config(
        data=DataOptions(scenes=6000, validation=200, test=600),
        model=ModelOptions(width=32, layers=2, heads=4),
        teacher=TeacherOptions(steps=700),
        optimizer=StageOptions(steps=700),
        trainer=_CUT,
    ),
    "small": Config(
        preset="small",
        seeds=3,
        arms=["dide", "soft", "uni-modal", "hard"],
        optimizer=StageOptions(steps=2200),
        trainer=_CUT,
    ),
    "easy-vqa": Config(
        preset="easy-vqa",
        seeds=3,
        arms=["dide", "soft", "hard"],
        data=DataOptions(name="easy-vqa", scenes=0, test=0),
        model=ModelOptions(width=32, layers=2, heads=4),
        teacher=TeacherOptions(steps=1000),
        optimizer=StageOptions(steps=1000),
        trainer=_CUT,
    ),
    "shapes": Config(
        preset="shapes",
        seeds=3,
        arms=["dide", "soft", "hard"],
        data=DataOptions(name="shapes", test=0),
        model=ModelOptions(layers=4),
        teacher=TeacherOptions(steps=6000, batch_size=128),
        optimizer=StageOptions(steps=6000, batch_size=128),
        trainer=_CUT,
    ),
    "nlvr": Config(
        preset="nlvr",
        seeds=3,
        arms=["dide", "soft", "hard"],
        data=DataOptions(name="nlvr", scenes=0, test=0),
        model=ModelOptions(square=False, longest=400),
        trainer=_CUT,
    ),
    # Batch, rates and epochs of VQA as the official program has them; the checkpoints are the reader's to name.
    "paper": Config(
        preset="paper",
        seeds=3,
        arms=["hard", "soft", "dide"],
        data=DataOptions(name="vqa-v2", scenes=0, test=0),
        model=ModelOptions(
            width=768, layers=12, heads=12, patch=32, shorter=384, square=False, dropout=0.1, sharp=False, augment=True,
            vocabulary="vocab.txt",
        ),
        teacher=TeacherOptions(steps=25150, batch_size=256, learning_rate=1e-4, classifier_factor=10),
        optimizer=StageOptions(steps=25150, batch_size=256, learning_rate=1e-4, classifier_factor=10),
        trainer=TrainerOptions(precision="16-mixed"),
    ),
}  # fmt: skip
