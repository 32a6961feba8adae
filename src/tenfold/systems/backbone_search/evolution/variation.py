"""Drawing genomes: tournaments, crossover gene by gene or stage by stage, ordinal mutation, rejection."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tenfold.systems.backbone_search.evolution.candidates import SearchTask
from tenfold.systems.backbone_search.space.search_space import Genome, SearchSpace

TRIES = 200
"""Draws until a genome is taken that is new and within the limits; then the least violating new one."""


def draw(
    task: SearchTask,
    asked: Collection[str],
    generator: np.random.Generator,
    parents: Sequence[tuple[Genome, tuple[float, ...]]] = (),
    crossover: float = 0.9,
) -> Genome:
    """A genome that was not asked for before, within the limits where one is found.

    Args:
        task: space and limits.
        asked: hashes of genomes that were asked for.
        generator: draws.
        parents: genomes with their keys (smaller is better); a random genome is drawn where there are none.
        crossover: probability that two parents are mixed.
    """
    best: tuple[float, Genome] | None = None
    genome: Genome = {}
    for _ in range(TRIES):
        genome = task.space.random(generator) if not parents else _child(task.space, parents, generator, crossover)
        if task.space.digest(genome) in asked:
            continue
        violation = task.violation(genome)
        if violation == 0:
            return genome
        if best is None or violation < best[0]:
            best = (violation, genome)
    return genome if best is None else best[1]


def _child(
    space: SearchSpace,
    parents: Sequence[tuple[Genome, tuple[float, ...]]],
    generator: np.random.Generator,
    crossover: float,
) -> Genome:
    first, second = _tournament(parents, generator), _tournament(parents, generator)
    genome = dict(first)
    if generator.random() < crossover:
        by_stage = generator.random() < 0.5
        names = list(space.genes)
        units = list(dict.fromkeys(name.split(".")[0] for name in names)) if by_stage else names
        taken = {unit for unit in units if generator.random() < 0.5}
        for name in names:
            if (name.split(".")[0] if by_stage else name) in taken:
                genome[name] = second[name]
    return mutate(space, genome, generator)


def _tournament(parents: Sequence[tuple[Genome, tuple[float, ...]]], generator: np.random.Generator) -> Genome:
    a, b = (parents[int(generator.integers(len(parents)))] for _ in range(2))
    return (a if a[1] <= b[1] else b)[0]


def mutate(space: SearchSpace, genome: Mapping, generator: np.random.Generator) -> Genome:
    """Each active gene changes with probability 1 over their number: half the time by one step, half to any value."""
    changed: Genome = dict(genome)
    active = space.active(changed)
    for name in active:
        choices = space.genes[name]
        if generator.random() >= 1 / max(len(active), 1) or len(choices) == 1:
            continue
        place = choices.index(changed[name])
        if generator.random() < 0.5:
            place += 1 if generator.random() < 0.5 else -1
            changed[name] = choices[min(max(place, 0), len(choices) - 1)]
        else:
            changed[name] = choices[int(generator.integers(len(choices)))]
    return changed


def initial_population(task: SearchTask) -> list[Genome]:
    """The seed, its even scalings that just meet the limits, then what the task names; each once, by hash.

    So a front can not lose to the obvious controls on the search's own score. What is beyond the limits is left out:
    training it would cost a candidate and tell nothing.
    """
    chosen = [task.space.seed]
    for family in task.space.uniform():
        within = [genome for genome in family if task.violation(genome) == 0]
        if within:
            name = task.objectives[0]
            chosen.append(max(within, key=lambda genome: task.costs(genome)[name]))
    chosen += list(task.initial)
    unique: dict[str, Genome] = {}
    for genome in chosen:
        if task.violation(genome) == 0:
            unique.setdefault(task.space.digest(genome), genome)
    return list(unique.values())
