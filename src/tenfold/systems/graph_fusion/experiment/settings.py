"""Settings of the experiment: options with their ranges, arms, presets."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, PositiveShare, Seed, Share
from tenfold.training.options import TrainerOptions


@dataclass
class DataOptions:
    """Which graph; see `tenfold.systems.graph_fusion.data.load_graph`.

    Attributes:
        name: ``umls``, ``nations``, ``kinships`` (inside PyKEEN's wheel), or a folder, archive or file of triples.
        root: folder below which it lies; ``TENFOLD_DATA`` where null.
        order: columns of files whose layout does not declare them: ``hrt``, ``htr`` or ``rht``; null: told by the data.
        header: whether the first row of CSV and TSV files names the columns; null: if it names head, relation and tail.
        fourth_column: ``refuse`` one, ``ignore`` it, or ``truth``: rows with 1 are facts, with 0 or -1 none.
        texts: file of ``id TAB text``, or a folder with text files, where they do not lie beside the triples.
        language: of labels in N-Triples and CoDEx.
        long_texts: read ``entity2textlong.txt``, too.
        missing_texts: ``refuse`` text files that miss entities, or take the words of the ``id``.
        duplicates: ``refuse`` repeated triples and second texts of an id, or ``drop`` them.
        truth: the full graph that this one was thinned from; tells how many injected triples are true. Null: the
            preset's, for the preset's own graph, else none.
        entities: if above 0, only the part induced by so many entities. Null: the preset's, for the preset's own graph,
            else 0.
        fraction: share of the training triples to keep. Null: the preset's, for the preset's own graph, else 1.
        unseen: ``keep`` entities without a training triple, or ``drop`` them as other libraries do.
        seed: of what is random about the data.
    """

    name: str = "umls"
    root: str | None = None
    order: Literal["hrt", "htr", "rht"] | None = None
    header: bool | None = None
    fourth_column: Literal["refuse", "ignore", "truth"] = "refuse"
    texts: str | None = None
    language: str = "en"
    long_texts: bool = False
    missing_texts: Literal["refuse", "id"] = "refuse"
    duplicates: Literal["refuse", "drop"] = "refuse"
    truth: str | None = None
    entities: Count | None = None
    fraction: PositiveShare | None = None
    unseen: Literal["keep", "drop"] = "keep"
    seed: Seed = 0


@dataclass
class EncoderOptions:
    """One encoder and how it learns.

    Attributes:
        name: structure: ``transe``, ``distmult``, ``complex``, ``rotate``, ``hake``, ``conve``, ``compgcn``,
            ``pykeen/MODEL``; text: ``hash-text``, ``bi-encoder``, ``pair-scorer``; or ``factory``.
        factory: ``package.module:function``, called with the graph and ``arguments``; gives a ``QueryScorer``.
        arguments: of the encoder, such as ``{dim: 200}``; text encoders on a transformers checkpoint need
            ``{checkpoint: FOLDER}``.
        weights: model folder of an earlier run, or safetensors file, to start from.
        loss: its own supervised loss: ``softmax`` over the answers, ``1vsall``, ``bce``, ``nssa`` (self-adversarial
            negative sampling), ``infonce`` (in-batch), ``sampled`` (shared negatives).
        negatives: of ``nssa`` per positive, of ``sampled`` per batch.
        alpha: of ``nssa``: how much likelier negatives weigh more, the adversarial temperature of RotatE and HAKE.
        smoothing: label smoothing.
        learning_rate: of Adam.
        weight_decay: decoupled.
    """

    name: str = "conve"
    factory: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    loss: Literal["softmax", "1vsall", "bce", "nssa", "infonce", "sampled"] = "softmax"
    negatives: PositiveInt = 256
    alpha: NonNegativeFloat = 1.0
    smoothing: Share = 0.1
    learning_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.0


@dataclass
class FusionOptions:
    """How the encoders teach each other.

    Attributes:
        batch_size: queries of a step.
        warm_epochs: epochs of each encoder alone; 0 where trained weights are loaded.
        warm_up_steps: steps in which the learning rates of the warm start rise linearly from 0, as text towers want; at
            most a tenth of all its steps.
        warm_decay: let them then fall linearly to 0; else they stay.
        mutual_epochs: at most so many epochs of M2L.
        patience: M2L ends when so many epochs bring no better validation MRR; 0 trains them all.
        rounds: EM rounds.
        phase_epochs: epochs of each E-step and each M-step.
        em_learning_rate: factor of the learning rates in EM rounds.
        lam: weight of M2L in both encoders.
        mu_e: weight of the E-step's KL.
        mu_m: weight of the M-step's KL.
        nu: weight of injected triples in the supervised loss.
        temperature: tau of all distillation.
        mutual_split: ``full``, ``exact`` (without the part outside the answers) or ``decoupled`` (CoLE's).
        e_step: ``forward`` KL(p || q), or ``reverse`` KL(q || p), which climbs the ELBO.
        roles: ``text-posterior``: the text encoder guesses, the structure encoder's graph is densified; or
            ``structure-posterior``.
        order: which encoder learns first in a round: ``posterior`` (E-step first) or ``model``.
        calibrate: fit temperatures on validation before fusion and in every round.
        cross: cross queries per entity and round.
        residual: use residual queries.
        leftover: weigh residual queries by the teacher's mass outside the known answers.
        max_queries: at most so many unobserved queries per round; 0 for all.
        top_k: candidates kept of a teacher.
        renormalize: drop the teacher's tail and renormalize its best K.
        gate: ``threshold``, which looks at no held-out fact, or ``validated``, which orders candidates by hit rates on
            validation facts (then stamped on all results: validation is no longer untouched by training).
        threshold: delta, least confidence of an injected triple.
        share: rho, injected triples at most, as a share of the training triples.
        agreement: an injected triple must be among so many best of the other encoder; 0 asks for none.
        weighted: injected triples count with their confidence.
        sample: draw injected answers from the teacher in place of its best ones.
        transductive_queries: RESEARCH ONLY: test queries take part as unobserved queries; stamped on all results.
        validation_limit: validation triples ranked after an epoch; 0 for all.
    """

    batch_size: PositiveInt = 128
    warm_epochs: Count = 40
    warm_up_steps: Count = 0
    warm_decay: bool = False
    mutual_epochs: Count = 20
    patience: Count = 5
    rounds: Count = 3
    phase_epochs: Count = 5
    em_learning_rate: PositiveFloat = 1 / 3
    lam: NonNegativeFloat = 1.0
    mu_e: NonNegativeFloat = 1.0
    mu_m: NonNegativeFloat = 1.0
    nu: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 1.0
    mutual_split: Literal["full", "exact", "decoupled"] = "full"
    e_step: Literal["forward", "reverse"] = "forward"
    roles: Literal["text-posterior", "structure-posterior"] = "text-posterior"
    order: Literal["posterior", "model"] = "posterior"
    calibrate: bool = True
    cross: Count = 4
    residual: bool = True
    leftover: bool = False
    max_queries: Count = 0
    top_k: PositiveInt = 64
    renormalize: bool = False
    gate: Literal["threshold", "validated"] = "threshold"
    threshold: Share = 0.5
    share: NonNegativeFloat = 0.3
    agreement: Count = 0
    weighted: bool = True
    sample: bool = False
    transductive_queries: bool = False
    validation_limit: Count = 2000


@dataclass
class Config:
    """Settings of a run of graph fusion.

    Attributes:
        preset: the preset that the other settings started from.
        seed: first seed.
        seeds: number of seeds; arms are compared seed by seed.
        arms: what is trained beside ``alone`` and ``vem2l``: names of `ARMS`.
        deliver: which encoder is kept: ``structure``, ``text``, or ``auto``: the better one on validation among those
            within the limits.
        memory_limit_mb: for ``auto``: largest weights and candidate vectors of the delivered encoder; 0: any.
        latency_limit_ms: for ``auto``: longest time of one query on this machine; 0: any.
        data: see `DataOptions`.
        structure: see `EncoderOptions`.
        text: see `EncoderOptions`.
        fusion: see `FusionOptions`.
        trainer: see `tenfold.training.options.TrainerOptions`; changes where a run computes, not what.
        workers: processes that train arms and seeds side by side, one thread each; null: one per free core. On a GPU,
            or with several devices, there is one.
    """

    preset: str = "tiny"
    seed: Seed = 0
    seeds: PositiveInt = 3
    arms: list[str] = field(default_factory=lambda: ["m2l", "m2l-more", "vem", "vem2l-nodens"])
    deliver: Literal["auto", "structure", "text"] = "structure"
    memory_limit_mb: NonNegativeFloat = 0.0
    latency_limit_ms: NonNegativeFloat = 0.0
    data: DataOptions = field(default_factory=DataOptions)
    structure: EncoderOptions = field(default_factory=EncoderOptions)
    text: EncoderOptions = field(default_factory=lambda: EncoderOptions(name="hash-text"))
    fusion: FusionOptions = field(default_factory=FusionOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    workers: PositiveInt | None = None

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            UserError: some do not.
        """
        fusion = self.fusion
        if fusion.batch_size < 2:
            raise UserError(f"fusion.batch_size must be at least 2; got {fusion.batch_size}")
        if not fusion.residual and fusion.cross == 0 and not fusion.transductive_queries:
            raise UserError("fusion.residual false and fusion.cross 0 leave no unobserved queries: allow one of them")
        if fusion.agreement > fusion.top_k:
            raise UserError(f"fusion.agreement {fusion.agreement} must be at most fusion.top_k {fusion.top_k}")
        for side, options in (("structure", self.structure), ("text", self.text)):
            if (options.name == "factory") != (options.factory is not None):
                raise UserError(f"{side}.factory and {side}.name factory go together: set both or none")
        arms_of(self)


@dataclass(frozen=True)
class Arm:
    """What one arm does after the warm start, and from which other arm it goes on.

    Attributes:
        parent: arm whose final state it starts from; ``None`` for the warm start itself.
        mutual: M2L epochs on observed queries.
        rounds: whether EM rounds follow.
        changes: fusion options that differ from the run's.
    """

    parent: str | None
    mutual: bool = False
    rounds: bool = False
    changes: tuple[tuple[str, Any], ...] = ()


_OFF = (("mu_e", 0.0), ("mu_m", 0.0), ("nu", 0.0), ("share", 0.0))

ARMS: dict[str, Arm] = {
    "alone": Arm(None),
    "alone-more": Arm("alone", mutual=True, rounds=True, changes=(("lam", 0.0), *_OFF)),
    "m2l": Arm("alone", mutual=True),
    "m2l-more": Arm("m2l", rounds=True, changes=_OFF),
    "vem": Arm("alone", rounds=True, changes=(("lam", 0.0),)),
    "vem2l-nodens": Arm("m2l", rounds=True, changes=(("nu", 0.0), ("share", 0.0))),
    "vem2l": Arm("m2l", rounds=True),
}
"""Arms by name, parents first. ``alone-more`` and ``m2l-more`` are the controls that take as many steps."""

ABLATIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "no-residual": (("residual", False),),
    "no-cross": (("cross", 0),),
    "unweighted": (("weighted", False),),
    "validated-gate": (("gate", "validated"),),
    "agreement": (("agreement", 10),),
    "uncalibrated": (("calibrate", False),),
    "reverse": (("e_step", "reverse"),),
    "exact-split": (("mutual_split", "exact"),),
    "decoupled": (("mutual_split", "decoupled"),),
    "swapped-roles": (("roles", "structure-posterior"),),
    "model-first": (("order", "model"),),
    "renormalized": (("renormalize", True),),
    "sampled": (("sample", True),),
}
"""Changes of ``vem2l``; an arm ``vem2l-NAME`` goes on from ``m2l`` with them."""


def find_arm(name: str) -> Arm:
    """The arm of a name in `ARMS`, or ``vem2l-NAME`` with a name in `ABLATIONS`.

    Raises:
        UserError: there is none.
    """
    if name in ARMS:
        return ARMS[name]
    ablation = name.removeprefix("vem2l-")
    if name.startswith("vem2l-") and ablation in ABLATIONS:
        return Arm("m2l", rounds=True, changes=ABLATIONS[ablation])
    known = [*ARMS, *(f"vem2l-{ablation}" for ablation in ABLATIONS)]
    raise UserError(f"arms: there is no arm {name!r}; there are: {', '.join(known)}")


def arms_of(config: Config) -> list[str]:
    """The arms of a run, each after its parent; ``alone`` and ``vem2l`` are always among them.

    Raises:
        UserError: an unknown arm.
    """
    wanted = ["alone", *config.arms, "vem2l"]
    ordered: list[str] = []

    def add(name: str) -> None:
        parent = find_arm(name).parent
        if parent is not None:
            add(parent)
        if name not in ordered:
            ordered.append(name)

    for name in sorted(wanted, key=lambda name: name == "vem2l"):
        add(name)
    return ordered


def data_of(config: Config) -> tuple[DataOptions, list[str]]:
    """Which data a run reads: what a preset says of its own graph acts on that graph alone.

    Returns:
        the options without anything left out, and a note on what the preset added.
    """
    own = OWN_DATA.get(config.preset, DataOptions(name=""))
    mine = config.data.name == own.name
    plain = {"truth": None, "entities": 0, "fraction": 1.0}
    left_out = {name: value for name, value in plain.items() if getattr(config.data, name) is None}
    presets = {name: getattr(own, name) for name in left_out if mine and getattr(own, name) is not None}
    chosen: dict[str, Any] = {**left_out, **presets}
    added = {name: value for name, value in chosen.items() if value != plain[name]}
    notes = []
    if added:
        said = ", ".join(f"data.{name} {value}" for name, value in added.items())
        notes.append(f"Preset {config.preset} says of its own graph {own.name}: {said}.")
    return replace(config.data, **chosen), notes


def options_of(config: Config, arm: str) -> FusionOptions:
    """The fusion options of an arm: the run's, with the arm's changes."""
    return replace(config.fusion, **dict(find_arm(arm).changes))


_TINY_CONVE: dict[str, Any] = {"dim": 60, "channels": 16, "normalize": False}

_SMALL = Config(
    preset="small",
    seeds=3,
    arms=["alone-more", "m2l", "m2l-more", "vem", "vem2l-nodens"],
    data=DataOptions(name="FB15K-237-10"),
    structure=EncoderOptions(
        name="conve", arguments={"dim": 100, "channels": 32, "normalize": False}, learning_rate=2e-3
    ),
    text=EncoderOptions(name="hash-text", arguments={"dim": 100}, learning_rate=1e-3),
    fusion=FusionOptions(warm_epochs=12, mutual_epochs=10, rounds=3, phase_epochs=3, mu_e=3.0, mu_m=3.0),
)

# The official ConvE decoder of CompGCN drops single features, and nothing of the picture.
_COMPGCN_TOWER: dict[str, Any] = {"input_dropout": 0.0, "map_dropout": 0.3, "whole_maps": False}

_PAPER = Config(
    preset="paper",
    seeds=3,
    arms=["m2l", "m2l-more", "vem", "vem2l-nodens"],
    data=DataOptions(name="FB15K-237-10"),
    # CompGCN's and SimKGC's own recipes; the batch is SimKGC's, whose negatives come from it.
    structure=EncoderOptions(
        name="compgcn",
        arguments={"dim": 200, "initial_dim": 100, "decoder_options": dict(_COMPGCN_TOWER)},
        loss="bce",
        smoothing=0.1,
        learning_rate=1e-3,
    ),
    text=EncoderOptions(
        name="bi-encoder",
        arguments={"previous": 2048, "neighbour_names": True, "max_tokens": 50},
        loss="infonce",
        learning_rate=1e-5,
        weight_decay=1e-4,
    ),
    fusion=FusionOptions(batch_size=1024, warm_epochs=50, warm_up_steps=400, warm_decay=True),
    trainer=TrainerOptions(gradient_clip=10.0),
)

PRESETS = {
    "tiny": Config(
        seeds=3,
        arms=["m2l"],
        data=DataOptions(name="umls"),
        structure=EncoderOptions(name="conve", arguments=dict(_TINY_CONVE)),
        text=EncoderOptions(name="hash-text", arguments={"dim": 60}),
        fusion=FusionOptions(
            batch_size=64, warm_epochs=20, mutual_epochs=10, rounds=2, phase_epochs=4, mu_e=3.0, mu_m=3.0
        ),
    ),
    "small": _SMALL,
    "small-nell": replace(
        _SMALL, preset="small-nell", arms=["m2l", "m2l-more", "vem"], data=DataOptions(name="NELL23K")
    ),
    "paper": _PAPER,
    "paper-nell": replace(
        _PAPER,
        preset="paper-nell",
        data=DataOptions(name="NELL23K"),
        text=replace(_PAPER.text, arguments={"max_tokens": 50}, learning_rate=5e-5),
    ),
}
"""Presets by name; ``paper`` ones need a GPU and a transformers folder, ``--text.arguments.checkpoint FOLDER``."""

OWN_DATA = {
    "tiny": DataOptions(name="umls", fraction=0.1),
    "small": DataOptions(name="FB15K-237-10", truth="FB15k-237", entities=1500),
    "small-nell": DataOptions(name="NELL23K", entities=2000),
    "paper": DataOptions(name="FB15K-237-10", truth="FB15k-237"),
}
"""What a preset does with its own graph, and with no other."""
