"""The sampler: NSGA-II, random or scalar search on Optuna's ``BaseGASampler``, the same for any number of workers.

Optuna's own samplers draw from a generator that a resumed or second process starts anew: the same genomes come again.
Here every genome has a *slot*, its place in the order of asking, and is drawn from ``default_rng([seed, slot])``; the
space is declared, not inferred from earlier trials; generations are ``slot // population``; genomes that lower slots
asked for are drawn again. So one run, any number of resumptions, and workers that take turns ask for the same genomes.

A worker that finds its generation closed (earlier candidates are still computed) gives its trial up: *void*. Slots are
given in the order of trial numbers, so that no two trials have one.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseGASampler
from optuna.trial import FrozenTrial, TrialState

from tenfold.systems.backbone_search.evolution.candidates import EvolutionOptions, SearchTask
from tenfold.systems.backbone_search.evolution.ranking import ranks_and_crowding, survivors
from tenfold.systems.backbone_search.evolution.variation import draw, initial_population
from tenfold.systems.backbone_search.space.search_space import Genome, SearchSpace

SLOT, VOID, GENOME, DIGEST = "tenfold:slot", "tenfold:void", "tenfold:genome", "tenfold:digest"
RETRIES = 3
"""How often a candidate is begun anew after its worker died."""

RETRY_OF = "failed_trial"
"""System attribute of Optuna's retried trials."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The genes as Optuna declares them."""
    return {name: CategoricalDistribution(choices) for name, choices in space.genes.items()}


def stored_genome(space: SearchSpace, trial: FrozenTrial) -> Genome | None:
    """The genome of a trial: kept with its slot, or as parameters; ``None`` where it has none yet."""
    if GENOME in trial.system_attrs:
        return dict(trial.system_attrs[GENOME])
    return dict(trial.params) if trial.params.keys() == space.genes.keys() else None


class EvolutionSampler(BaseGASampler):
    """Genomes of ``EvolutionOptions`` for a ``SearchTask``.

    Args:
        task: the problem.
        options: how genomes are drawn.
        patience: seconds after which a trial that has claimed no slot is taken for dead.
    """

    def __init__(self, task: SearchTask, options: EvolutionOptions, patience: float = 180.0) -> None:
        super().__init__(population_size=options.population)
        self.task, self.options, self.patience = task, options, patience
        self._initial = initial_population(task)
        self._offspring: tuple[int, list[Genome]] = (0, [])

    def reseed_rng(self) -> None:
        """Nothing: every slot has a generator of its own."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All genes, whatever earlier trials had."""
        return distributions(self.task.space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The seed's value; only void trials ask for it."""
        return self.task.space.seed[param_name]

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Claim a slot and draw its genome; nothing for a void trial."""
        storage, number = study._storage, trial._trial_id
        if hasattr(storage, "record_heartbeat") and getattr(storage, "heartbeat_interval", None):
            storage.record_heartbeat(number)  # from now on a dead worker's trial is found
        if SLOT in trial.system_attrs:
            return dict(trial.system_attrs[GENOME])
        if RETRY_OF in trial.system_attrs or VOID in trial.system_attrs:
            storage.set_trial_system_attr(number, VOID, True)
            return {}
        slot = self._claim(study, trial)
        generation = slot // self.options.population
        if slot >= self.options.budget or not self.is_open(study, generation):
            storage.set_trial_system_attr(number, VOID, True)
            return {}
        genome = self.genome_of(study, slot)
        storage.set_trial_system_attr(number, DIGEST, self.task.space.digest(genome))
        storage.set_trial_system_attr(number, self._get_generation_key(), generation)
        storage.set_trial_system_attr(number, GENOME, genome)
        storage.set_trial_system_attr(number, SLOT, slot)  # last: with it the trial counts
        # A worker that was silent for longer than the others' patience finds its slot taken. Each writes before it
        # looks, so that at most one goes on; where both give up, the slot is free again.
        if any(t.number != trial.number and _has(t, slot) for t in study.get_trials(deepcopy=False)):
            storage.set_trial_system_attr(number, VOID, True)
            return {}
        return genome

    def _claim(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """The lowest slot that no trial has, once all lower-numbered ones have theirs or are void."""
        started = time.monotonic()
        while True:
            trials = study.get_trials(deepcopy=False)
            undecided = [
                t
                for t in trials
                if t.number < trial.number
                and t.state == TrialState.RUNNING
                and SLOT not in t.system_attrs
                and VOID not in t.system_attrs
            ]
            if not undecided or time.monotonic() - started > self.patience:
                return free_slot(trials)
            time.sleep(0.02)

    def is_open(self, study: optuna.Study, generation: int) -> bool:
        """Whether genomes of a generation may be drawn: in ``sync``, when all earlier candidates are finished."""
        if self.options.mode == "async" or self.options.strategy == "random" or generation == 0:
            return True
        done = finished_slots(study)
        return all(slot in done for slot in range(generation * self.options.population))

    def genome_of(self, study: optuna.Study, slot: int) -> Genome:
        """The genome of a slot, from what lower slots asked for and what is known of their candidates."""
        generator = np.random.default_rng([self.options.seed, slot])
        trials = study.get_trials(deepcopy=False)
        asked = {t.system_attrs[DIGEST] for t in trials if t.system_attrs.get(SLOT, slot) < slot}
        if slot < len(self._initial) and self.options.strategy != "random":
            return dict(self._initial[slot])
        generation = slot // self.options.population
        if generation > 0 and self.options.screen:
            return self.screened(study, generation)[slot % self.options.population]
        parents: list[tuple[Genome, tuple[float, ...]]] = []
        if generation > 0 and self.options.strategy != "random":
            if self.options.mode == "sync":
                chosen = self.get_parent_population(study, generation)
            else:
                chosen = self._survivors(list(completed(study).values()))
            parents = self._keys(chosen)
        return draw(self.task, asked, generator, parents, self.options.crossover)

    def screened(self, study: optuna.Study, generation: int) -> list[Genome]:
        """The better half of twice a population, by cheap scores; workers share these through the study.

        Args:
            study: with all candidates of earlier generations finished.
            generation: from 1.
        """
        if self._offspring[0] != generation:
            self._offspring = generation, self._draw_offspring(study, generation)
        genomes = self._offspring[1]
        digests = [self.task.space.digest(genome) for genome in genomes]
        for row in np.random.default_rng().permutation(len(genomes)):  # each worker in an order of its own
            key = f"screen:{digests[row]}"
            if key not in study.user_attrs:
                assert self.task.cheap is not None
                study.set_user_attr(key, float(self.task.cheap(genomes[row], digests[row])))
        scores = study.user_attrs
        costs = [self.task.costs(genome) for genome in genomes]
        values = [
            [-scores[f"screen:{digest}"], *(cost[name] for name in self.task.objectives)]
            for digest, cost in zip(digests, costs, strict=True)
        ]
        violations = np.array([self.task.violation(genome) for genome in genomes])
        kept = survivors(np.array(values), violations, self.options.population)
        return [genomes[row] for row in kept]

    def _draw_offspring(self, study: optuna.Study, generation: int) -> list[Genome]:
        first = generation * self.options.population
        generator = np.random.default_rng([self.options.seed, first])
        trials = study.get_trials(deepcopy=False)
        asked = {t.system_attrs[DIGEST] for t in trials if t.system_attrs.get(SLOT, first) < first}
        parents = self._keys(self.get_parent_population(study, generation))
        genomes = []
        for _ in range(2 * self.options.population):
            genomes.append(draw(self.task, asked, generator, parents, self.options.crossover))
            asked.add(self.task.space.digest(genomes[-1]))
        return genomes

    def get_trial_generation(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Slot over population."""
        return int(trial.system_attrs.get(SLOT, 0)) // self.options.population

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """Survivors of all generations before this one, each generation against the survivors before it."""
        done = completed(study)
        parents: list[FrozenTrial] = []
        for earlier in range(generation):
            first = earlier * self.options.population
            offspring = [done[s] for s in range(first, first + self.options.population) if s in done]
            parents = self._survivors(parents + offspring)
        return parents

    def _survivors(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        trials = sorted(trials, key=lambda trial: trial.system_attrs[SLOT])
        if self.options.strategy == "scalar":
            order = sorted(range(len(trials)), key=lambda row: (*self._scalar(trials[row]), row))
            return [trials[row] for row in sorted(order[: self.options.population])]
        kept = survivors(*objective_values(trials), self.options.population)
        return [trials[row] for row in kept]

    def _keys(self, trials: Sequence[FrozenTrial]) -> list[tuple[Genome, tuple[float, ...]]]:
        """Genomes with what tournaments compare: violation, rank, crowding; or violation and scalar value."""
        if not trials:
            return []
        genomes = [dict(trial.system_attrs[GENOME]) for trial in trials]
        if self.options.strategy == "scalar":
            return [(genome, self._scalar(trial)) for genome, trial in zip(genomes, trials, strict=True)]
        values, violations = objective_values(trials)
        ranks, crowding = ranks_and_crowding(values, violations)
        keys = zip(violations.tolist(), ranks.tolist(), (-crowding).tolist(), strict=True)
        return list(zip(genomes, keys, strict=True))

    def _scalar(self, trial: FrozenTrial) -> tuple[float, float]:
        name = self.task.objectives[0]
        share = trial.user_attrs["costs"][name] / self.task.costs(self.task.space.seed)[name]
        return trial.user_attrs["violation"], -trial.values[0] + self.options.weight * share


def free_slot(trials: Sequence[FrozenTrial]) -> int:
    """The lowest slot that no trial has."""
    taken = {t.system_attrs[SLOT] for t in trials if SLOT in t.system_attrs and VOID not in t.system_attrs}
    return next(slot for slot in range(len(taken) + 1) if slot not in taken)


def _has(trial: FrozenTrial, slot: int) -> bool:
    return trial.system_attrs.get(SLOT) == slot and VOID not in trial.system_attrs


def is_repeated(study: optuna.Study, number: int, slot: int) -> bool:
    """Whether a lower-numbered trial has the slot: two workers may have put one dead candidate into the queue."""
    others = (t for t in study.get_trials(deepcopy=False) if t.number < number and _has(t, slot))
    return any(t.state != TrialState.FAIL for t in others)


def completed(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The finished trial of every slot that has one; the first where a slot was, against all care, computed twice."""
    done: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        if SLOT in trial.system_attrs:
            done.setdefault(trial.system_attrs[SLOT], trial)
    return done


def finished_slots(study: optuna.Study) -> set[int]:
    """Slots whose candidate is finished, or was given up after all its retries."""
    done = set(completed(study))
    for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL]):
        history = trial.system_attrs.get("retry_history", [])
        if SLOT in trial.system_attrs and len(history) >= RETRIES:
            done.add(trial.system_attrs[SLOT])
    return done


def objective_values(trials: Sequence[FrozenTrial]) -> tuple[np.ndarray, np.ndarray]:
    """Values to be minimised ``(n, objectives)`` and violations ``(n,)``; the score, which studies maximise, is
    negated here and nowhere else.
    """
    values = np.array([[-trial.values[0], *trial.values[1:]] for trial in trials], dtype=np.float64)
    return values, np.array([trial.user_attrs["violation"] for trial in trials], dtype=np.float64)
