"""The steps of the experiment: sets of different methods, sizes and seeds do not depend on each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.run import Run
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.experiment.attack_arms import (
    ATTACKS,
    ablate_one,
    ablations_of,
    attack_set,
    defend,
)
from tenfold.systems.condensation_audit.experiment.set_arms import measure_full, measure_set, network_of
from tenfold.systems.condensation_audit.experiment.settings import Config
from tenfold.workers import Step, Work


def full_step(seed: int) -> Step:
    """Accuracy with all real images."""
    return Step(f"full/seed{seed}", ("full", seed))


def set_step(method: str, size: int, seed: int) -> Step:
    """A set, and networks trained on it."""
    return Step(f"sets/{method}-{size}/seed{seed}", ("set", seed, method, size))


def attack_step(attack: str, seed: int) -> Step:
    """A set condensed under attack."""
    return Step(f"attacks/{attack}/seed{seed}", ("attack", seed, attack))


def defence_step(arm: str, seed: int) -> Step:
    """Every defence on the clean set, or on that of an attack."""
    return Step(f"defences/{arm}/seed{seed}", ("defence", seed, arm))


def ablation_step(axis: str, value: Any, attack: str, seed: int) -> Step:
    """An attack with one thing varied."""
    return Step(f"ablations/{axis}/{value}-{attack}", ("ablation", seed, axis, value, attack))


def phases_of(config: Config, methods: Sequence[str]) -> list[list[Step]]:
    """All steps: condensing, attacking, defending; those of a phase depend on earlier phases only."""
    seeds = range(config.seed, config.seed + config.seeds)
    options = config.attack
    full = [full_step(seed) for seed in seeds] if config.training.full_epochs else []
    sets = [set_step(method, size, seed) for size in config.images_per_class for method in methods for seed in seeds]
    attacked = [set_step(options.method, options.images_per_class, seed) for seed in seeds]
    attacks = [attack_step(attack, seed) for attack in ATTACKS for seed in seeds]
    arms = ("clean", *ATTACKS) if options.defences else ()
    return [
        list(dict.fromkeys([*full, *sets, *attacked])),
        [*attacks, *(ablation_step(*what, config.seed) for what in ablations_of(config))],
        [defence_step(arm, seed) for arm in arms for seed in seeds],
    ]


def open_place(config: Config) -> Work:
    """What every step needs, once per process: the data and the network."""
    data = load_data(config.images, zca_eps=config.zca_eps, held_out=config.held_out)
    factory = network_of(config, data)

    def work(step: Step, folder: Path, run: Run) -> dict[str, Any]:
        kind, seed, *what = step.arguments
        if kind == "full":
            return measure_full(config, data, seed)
        if kind == "set":
            method, size = what
            return measure_set(config, data, factory, method, size, seed, folder, run, step.name)
        if kind == "attack":
            return attack_set(config, data, factory, what[0], seed, folder, run, step.name)
        if kind == "defence":
            return defend(config, data, factory, what[0], seed, run, folder)
        axis, value, attack = what
        return ablate_one(config, data, factory, axis, value, attack, folder, run, step.name)

    return work
