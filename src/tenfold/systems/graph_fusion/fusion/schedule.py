"""The schedule's own settings: warm start, mutual learning, EM rounds, and what is injected."""

from dataclasses import dataclass, field
from typing import Literal

MutualSplit = Literal["full", "exact", "decoupled"]
Gate = Literal["threshold", "validated"]


@dataclass(frozen=True)
class WarmStart:
    """Each encoder alone, with its own loss.

    Attributes:
        epochs: of both; 0 where encoders that are trained already are only measured.
        warm_up_steps: steps in which the learning rates rise linearly from 0, as text towers want; at most a tenth of
            all steps.
        decay: let them then fall linearly to 0; else they stay.
    """

    epochs: int = 40
    warm_up_steps: int = 0
    decay: bool = False


@dataclass(frozen=True)
class Mutual:
    """M2L: the encoders learn from each other on observed queries.

    Attributes:
        epochs: at most so many.
        patience: M2L ends when so many epochs bring no better validation MRR; 0 trains them all.
        weight: lambda, of M2L in both encoders, in the EM rounds, too.
        split: ``full``, ``exact`` (without the part outside the answers) or ``decoupled`` (CoLE's); see `mutual_loss`.
    """

    epochs: int = 20
    patience: int = 5
    weight: float = 1.0
    split: MutualSplit = "full"


@dataclass(frozen=True)
class UnobservedSampling:
    """Which queries with unknown answers a round takes; see `sample_unobserved`.

    Attributes:
        cross: cross queries per entity.
        residual: use residual queries.
        limit: at most so many queries; 0 for all.
        test_queries: RESEARCH ONLY: test queries take part.
    """

    cross: int = 4
    residual: bool = True
    limit: int = 0
    test_queries: bool = False


@dataclass(frozen=True)
class Beliefs:
    """What is kept of a frozen teacher; see `write_teacher`.

    Attributes:
        top_k: candidates kept of each query.
        renormalize: drop the teacher's tail and renormalize its best K.
        leftover: weigh residual queries by the teacher's mass outside the known answers.
    """

    top_k: int = 64
    renormalize: bool = False
    leftover: bool = False


@dataclass(frozen=True)
class Injection:
    """Which of a teacher's answers join the graph for a round; see `densify`.

    Attributes:
        share: rho, injected triples at most, as a share of the training triples; 0 injects none.
        nu: weight of injected triples in the supervised loss.
        gate: ``threshold``, which looks at no held-out fact, or ``validated``, which orders candidates by hit rates on
            validation facts.
        threshold: delta, least confidence of an injected triple.
        agreement: an injected triple must be among so many best of the other encoder; 0 asks for none.
        weighted: injected triples count with their confidence.
        sample: draw injected answers from the teacher in place of its best ones.
    """

    share: float = 0.3
    nu: float = 0.5
    gate: Gate = "threshold"
    threshold: float = 0.5
    agreement: int = 0
    weighted: bool = True
    sample: bool = False


@dataclass(frozen=True)
class Rounds:
    """EM rounds: one encoder learns from the other, frozen, on unobserved queries, and in turn.

    Attributes:
        number: of rounds.
        epochs: of each E-step and each M-step.
        learning_rate: factor of the learning rates.
        mu_e: weight of the E-step's KL.
        mu_m: weight of the M-step's KL.
        reverse: the E-step minimises KL(q || p), which climbs the ELBO, in place of KL(p || q).
        posterior: the side that guesses; the other one's graph is densified.
        model_first: the M-step comes first in a round.
    """

    number: int = 3
    epochs: int = 5
    learning_rate: float = 1 / 3
    mu_e: float = 1.0
    mu_m: float = 1.0
    reverse: bool = False
    posterior: Literal["structure", "text"] = "text"
    model_first: bool = False


@dataclass(frozen=True)
class Schedule:
    """How two encoders teach each other.

    Attributes:
        warm: each alone.
        mutual: on observed queries.
        rounds: on unobserved ones.
        queries: which those are.
        beliefs: what is kept of a teacher.
        injection: which answers become triples.
        batch_size: queries of a step, over all processes.
        temperature: tau of all distillation.
        calibrate: fit temperatures on validation before fusion and in every round.
        validation_limit: validation triples ranked after an epoch; 0 for all.
    """

    warm: WarmStart = field(default_factory=WarmStart)
    mutual: Mutual = field(default_factory=Mutual)
    rounds: Rounds = field(default_factory=Rounds)
    queries: UnobservedSampling = field(default_factory=UnobservedSampling)
    beliefs: Beliefs = field(default_factory=Beliefs)
    injection: Injection = field(default_factory=Injection)
    batch_size: int = 128
    temperature: float = 1.0
    calibrate: bool = True
    validation_limit: int = 2000
