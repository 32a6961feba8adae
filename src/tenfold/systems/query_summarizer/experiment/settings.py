"""Settings of the experiment: data, extractor, training, sparse arms, presets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tenfold.errors import UserError
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, ProperShare, Seed
from tenfold.training.options import TrainerOptions

BASELINES = ("lead", "random", "tfidf", "cosine")
ArmName = Literal["stage1", "stage2", "both", "both-no-query", "sparse"]
CriterionName = Literal["fisher", "fisher_sampled", "grad", "taylor", "change", "magnitude", "random"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)


@dataclass
class DataOptions:
    """What is summarised.

    Attributes:
        name: ``generated``; ``squality`` (stage 1 on QMSum, stage 2 and test on SQuALITY); or ``jsonl``, for data of
            your own.
        root: folder of the data; for ``squality`` it holds ``squality/`` and ``qmsum/``, and TENFOLD_DATA's
            ``query-summaries`` is taken where it is not given. For ``jsonl``, the files are relative to it.
        stage1: for ``jsonl``, file with the large set (such as WikiRef); stage 1 is left out where there is none.
        train: for ``jsonl``, file with the target's training topics.
        test: for ``jsonl``, file with the target's test topics.
        fields: for ``jsonl``, names of the fields ``query``, ``document``, ``summary``; guessed where not given.
        stage1_groups: groups (meetings, pages) of the large set that are used; 0 for all. This and the next three are,
            where null, those that the preset takes of its own data; of other data all, a fifth of the training groups
            held back.
        train_groups: groups (stories) of the target that are trained on; 0 for all that are not held back.
        held_back_groups: further groups on which rates and epochs are chosen.
        test_groups: groups that are tested; 0 for all.
    """

    name: Literal["generated", "squality", "jsonl"] = "generated"
    root: str | None = None
    stage1: str | None = None
    train: str | None = None
    test: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    stage1_groups: Count | None = None
    train_groups: Count | None = None
    held_back_groups: PositiveInt | None = None
    test_groups: Count | None = None


@dataclass
class ModelOptions:
    """The extractor.

    Attributes:
        kind: ``fast`` (frozen sentence vectors, a small Transformer) or ``bert`` (Q-BERT as published).
        encoder: for ``fast``: ``minilm``, ``hashed-WIDTH``, or ``auto`` (minilm where it is installed). For ``bert``:
            a local folder with a BERT, or ``tiny`` (random weights, vocabulary made from the training texts).
        arguments: for ``fast``: width, layers, heads, dropout; for ``bert`` with ``tiny``: sizes of the BERT.
        segments: token types of sentences, for ``bert``: ``interval`` or ``pair``.
        max_tokens: of a window, for ``bert``.
        inter_layers: inter-sentence layers, for ``bert``: 0 or 2.
    """

    kind: Literal["fast", "bert"] = "fast"
    encoder: str = "auto"
    arguments: dict[str, Any] = field(default_factory=dict)
    segments: Literal["interval", "pair"] = "interval"
    max_tokens: PositiveInt = 512
    inter_layers: Count = 0


@dataclass
class StageOptions:
    """One stage of training.

    Attributes:
        epochs: passes over the windows.
        batch_size: windows of a step.
        learning_rate: of dense training; sparse arms choose a multiple.
        weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises; it falls linearly afterwards.
    """

    epochs: PositiveInt = 4
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.01
    warmup: ProperShare = 0.1


@dataclass
class SparseOptions:
    """The sparse arms of stage 2.

    Attributes:
        fractions: shares of the entries that are trained, each with every criterion.
        criteria: how they are chosen; see ``tenfold.sparse.scores``.
        granularity: ``entry``, ``row``, ``column`` or ``tensor``.
        rates: multiples of stage 2's learning rate that are tried for every trained arm, on the held-back topics.
    """

    fractions: list[PositiveShare] = field(default_factory=lambda: [0.05])
    criteria: list[CriterionName] = field(default_factory=lambda: ["fisher", "random"])
    granularity: Literal["entry", "row", "column", "tensor"] = "entry"
    rates: list[PositiveFloat] = field(default_factory=lambda: [0.3, 1.0, 3.0])


@dataclass
class SelectionOptions:
    """From scores to summaries.

    Attributes:
        words: budget of a summary, and ROUGE's limit.
        block: how repetitions are told: ``trigram``, ``bigram-ratio``, ``cosine``, ``mmr`` or ``none``.
    """

    words: PositiveInt = 250
    block: Literal["trigram", "bigram-ratio", "cosine", "mmr", "none"] = "trigram"


@dataclass
class Config:
    """Settings of a run of the query summarizer.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        arms: what is trained, of ``ARMS``; ``sparse`` stands for all pairs of fraction and criterion.
        labels: ``oracle`` (greedy, 0 or 1) or ``soft`` (similarity of each sentence with the references).
        data: see ``DataOptions``.
        model: see ``ModelOptions``.
        stage1: see ``StageOptions``.
        stage2: see ``StageOptions``.
        sparse: see ``SparseOptions``.
        selection: see ``SelectionOptions``.
        trainer: see ``tenfold.training.options.TrainerOptions``; changes where a run computes, not what.
        workers: processes that share the independent steps; one per free core where null.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 3
    arms: list[ArmName] = field(default_factory=lambda: list(ARMS))
    labels: Literal["oracle", "soft"] = "oracle"
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    stage1: StageOptions = field(default_factory=StageOptions)
    stage2: StageOptions = field(default_factory=lambda: StageOptions(epochs=8))
    sparse: SparseOptions = field(default_factory=SparseOptions)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    workers: PositiveInt | None = None

    def check(self) -> None:
        """Refuse settings that make no sense together.

        Raises:
            UserError: naming the setting.
        """
        data, own = self.data, self.data.name == "jsonl"
        if "both" not in self.arms and not (own and data.stage1 is None):
            raise UserError("--arms must hold 'both', which the others are measured against and which is delivered")
        if own and data.stage1 is None and "stage2" not in self.arms:
            raise UserError("without --data.stage1 the arm that is delivered is stage2: --arms must hold it")
        if not self.sparse.rates:
            raise UserError("--sparse.rates must not be empty")
        if "sparse" in self.arms and not (self.sparse.fractions and self.sparse.criteria):
            raise UserError("--sparse.fractions and --sparse.criteria must not be empty")
        if own and not (data.train and data.test):
            raise UserError("data of your own need --data.train FILE and --data.test FILE (and --data.stage1 FILE)")
        if not own and (data.train or data.test or data.stage1 or data.fields):
            raise UserError("--data.stage1, --data.train, --data.test and --data.fields need --data.name jsonl")
        if data.name == "generated" and data.root:
            raise UserError(f"data.root {data.root!r} has no effect on generated data: name yours with --data.name")


@dataclass(frozen=True)
class Arm:
    """One trained variant.

    Attributes:
        stage1: whether it starts from stage 1; else from random weights.
        stage2: whether it is trained on the target.
        query: whether it sees the query.
        criterion: of a sparse stage 2; empty for a dense one.
        fraction: of a sparse stage 2.
    """

    stage1: bool
    stage2: bool
    query: bool = True
    criterion: str = ""
    fraction: float = 1.0


def arms_of(config: Config) -> dict[str, Arm]:
    """The arms of a run by name."""
    named: dict[str, Arm] = {
        "stage1": Arm(True, False),
        "stage2": Arm(False, True),
        "both": Arm(True, True),
        "both-no-query": Arm(True, True, query=False),
    }
    wanted = set(map(str, config.arms))
    arms = {name: arm for name, arm in named.items() if name in wanted}
    if "sparse" in config.arms:
        for criterion in config.sparse.criteria:
            for fraction in config.sparse.fractions:
                arms[f"{criterion} {100 * fraction:g}%"] = Arm(True, True, True, criterion, fraction)
    if config.data.name == "jsonl" and config.data.stage1 is None:
        arms = {name: arm for name, arm in arms.items() if not arm.stage1}
    return arms


_OWN_GROUPS = {
    ("tiny", "generated"): {"stage1_groups": 60, "train_groups": 24, "held_back_groups": 12, "test_groups": 40},
    ("small", "squality"): {"stage1_groups": 16, "train_groups": 10, "held_back_groups": 3},
    ("paper", "squality"): {"held_back_groups": 5},
}
"""What a preset takes of its own data; by preset and data, so that it does not act on others."""


def sets_arguments(preset: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``load_sets`` by the settings of a run.

    Args:
        preset: of the run.
        data: fields of ``DataOptions``.
    """
    own = _OWN_GROUPS.get((preset, data["name"]), {})
    return {name: own.get(name) if value is None else value for name, value in data.items()}


PRESETS = {
    "tiny": Config(
        model=ModelOptions(encoder="hashed-96", arguments={"width": 64}),
        stage1=StageOptions(epochs=6, batch_size=16, learning_rate=2e-3),
        stage2=StageOptions(epochs=4, batch_size=16, learning_rate=1e-3),
        sparse=SparseOptions(rates=[1.0]),
        selection=SelectionOptions(words=40),
    ),
    "small": Config(
        preset="small",
        data=DataOptions(name="squality"),
        stage1=StageOptions(epochs=3, batch_size=16),
        stage2=StageOptions(epochs=4, batch_size=16, learning_rate=3e-4),
        sparse=SparseOptions(fractions=[0.01, 0.05], rates=[1.0, 5.0]),
    ),
    # Learning rates and epochs are reconstructed; the encoder's folder is the reader's to name.
    "paper": Config(
        preset="paper",
        seeds=5,
        data=DataOptions(name="squality"),
        model=ModelOptions(kind="bert", encoder="bert-base-uncased"),
        stage1=StageOptions(epochs=3, learning_rate=3e-5),
        stage2=StageOptions(epochs=10, learning_rate=3e-5),
        sparse=SparseOptions(
            fractions=[0.005, 0.02, 0.05, 0.1], criteria=["fisher", "random", "change"], rates=[0.5, 1.0, 3.0, 10.0]
        ),
        trainer=TrainerOptions(precision="bf16-mixed"),
    ),
}
