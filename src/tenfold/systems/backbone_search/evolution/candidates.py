"""What evolution asks of the problem, and what it knows of a candidate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.systems.backbone_search.objectives.limits import violations
from tenfold.systems.backbone_search.space.search_space import Genome, SearchSpace

Strategy = Literal["nsga2", "random", "scalar", "optuna-nsga2", "optuna-tpe"]
STRATEGIES = ("nsga2", "random", "scalar", "optuna-nsga2", "optuna-tpe")


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a candidate.

    Attributes:
        score: what is maximised, such as mean average precision; higher is better.
        details: further plain values that are kept with it.
    """

    score: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchTask:
    """A problem that can be searched: any space, any network, any way to train and score it.

    Attributes:
        space: genes.
        costs: costs of a genome by name, without training it.
        evaluate: trains and scores a genome; deterministic for one genome. Gets the genome and its hash.
        objectives: names of the costs that are minimised beside the score.
        limits: largest allowed value of costs by name.
        fingerprint: what the scores depend on beyond the space (seed weights, data, settings); a study belongs to one.
        initial: genomes that the first population holds.
        cheap: a quick score without training, for ``EvolutionOptions.screen``; deterministic for one genome.
    """

    space: SearchSpace
    costs: Callable[[Genome], Mapping[str, float]]
    evaluate: Callable[[Genome, str], Evaluation]
    objectives: tuple[str, ...] = ("multiply_adds",)
    limits: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    initial: Sequence[Genome] = ()
    cheap: Callable[[Genome, str], float] | None = None

    def violation(self, genome: Genome) -> float:
        """Summed violation of all limits; 0 is feasible."""
        return sum(violations(self.costs(genome), self.limits).values())

    def check(self) -> None:
        """Refuse a task without meaning before anything is trained.

        Raises:
            UserError: an objective is no cost, or a limit is below the smallest network.
        """
        costs = self.costs(self.space.seed)
        for name in self.objectives:
            if name not in costs:
                raise UserError(f"there is no cost {name!r} to minimise; there are: {', '.join(costs)}")
        if self.violation(self.space.seed) == 0:
            return
        smallest = {name: choices[0] for name, choices in self.space.genes.items()}
        if self.violation(smallest) > 0:
            found = self.costs(smallest)
            name = max(self.limits, key=lambda name: found[name] / self.limits[name])
            raise UserError(
                f"the limit of {name}, {self.limits[name]:,.6g}, is below the smallest network of the space, which has "
                f"{found[name]:,.6g}: raise the limit, or choose a smaller seed or input"
            )


@dataclass(frozen=True)
class Candidate:
    """One evaluated genome.

    Attributes:
        slot: its place in the order in which genomes were asked for.
        generation: of the evolution.
        genome: canonical.
        digest: its hash.
        score: what was maximised.
        costs: by name.
        violation: 0 where it is feasible.
        details: of the evaluation.
    """

    slot: int
    generation: int
    genome: Mapping[str, Any]
    digest: str
    score: float
    costs: Mapping[str, float]
    violation: float
    details: Mapping[str, Any]


@dataclass(frozen=True)
class EvolutionOptions:
    """How genomes are drawn.

    Attributes:
        strategy: ``nsga2`` (ours), the controls ``random`` and ``scalar`` (a genetic algorithm on score minus
            ``weight`` times the cost as a share of the seed's), or Optuna's own ``optuna-nsga2`` and ``optuna-tpe``.
        population: candidates of a generation.
        generations: how many.
        seed: of all draws.
        weight: of the cost, for ``scalar``.
        mode: ``sync`` waits for a generation's end and gives the same trials for any number of workers; ``async`` keeps
            all workers busy.
        crossover: probability that two parents are mixed.
        screen: draw twice as many offspring, score them cheaply, and evaluate the better half by rank and crowding;
            of ``nsga2`` in ``sync`` (ours, in place of pruning, which Optuna has for one objective only).
    """

    strategy: Strategy = "nsga2"
    population: int = 32
    generations: int = 20
    seed: int = 0
    weight: float = 0.3
    mode: Literal["sync", "async"] = "sync"
    crossover: float = 0.9
    screen: bool = False

    @property
    def budget(self) -> int:
        """Candidates in all."""
        return self.population * self.generations

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            UserError: names the first.
        """
        if self.strategy not in STRATEGIES:
            raise UserError(f"there is no strategy {self.strategy!r}; there are: {', '.join(STRATEGIES)}")
        if self.population < 2 or self.generations < 1:
            raise UserError(
                f"a search needs a population of at least 2 and a generation; got {self.population}, {self.generations}"
            )
        if self.mode not in ("sync", "async"):
            raise UserError(f"the mode is sync or async; got {self.mode!r}")
        if self.screen and (self.strategy, self.mode) != ("nsga2", "sync"):
            raise UserError("a screen compares the offspring of a whole generation of nsga2: it needs mode sync")
        if not 0 <= self.crossover <= 1 or not 0 <= self.weight < float("inf"):
            raise UserError("crossover is a probability and the weight of the cost is not negative")
