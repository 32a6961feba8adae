"""The steps of the experiment, each on its own; several processes may share them.

Sets of different methods, sizes and seeds do not depend on each other, and what a step finds depends on its settings
only: with two processes a run takes half the time and gives the same numbers.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.run import Run
from tenfold.systems.condensation_audit.data.load import Data, load_data
from tenfold.systems.condensation_audit.experiment.attack_arms import (
    ATTACKS,
    ablate_one,
    ablations_of,
    attack_set,
    defend,
)
from tenfold.systems.condensation_audit.experiment.set_arms import measure_full, measure_set, network_of
from tenfold.systems.condensation_audit.experiment.settings import Config
from tenfold.systems.condensation_audit.networks.factories import Factory

log = logging.getLogger("tenfold")


@dataclass(frozen=True)
class Step:
    """One step, by what it does.

    Attributes:
        kind: ``full``, ``set``, ``attack``, ``defence`` or ``ablation``.
        what: method and size; the attack; the arm; or axis, value and attack.
        seed: of the step.
    """

    kind: Literal["full", "set", "attack", "defence", "ablation"]
    what: tuple[Any, ...]
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.kind == "full":
            return f"full/seed{self.seed}"
        if self.kind == "set":
            return f"sets/{self.what[0]}-{self.what[1]}/seed{self.seed}"
        if self.kind == "ablation":
            axis, value, attack = self.what
            return f"ablations/{axis}/{value}-{attack}"
        return f"{self.kind}s/{self.what[0]}/seed{self.seed}"


@dataclass(frozen=True)
class Workplace:
    """What every step needs.

    Attributes:
        config: of the run.
        data: of the run.
        factory: makes the network.
        run: the run's folder.
    """

    config: Config
    data: Data
    factory: Factory
    run: Run

    def do(self, step: Step) -> dict[str, Any]:
        """Do a step, or read what it found."""
        return self.run.step(step.name, lambda folder: self._work(step, folder))

    def _work(self, step: Step, folder: Path) -> dict[str, Any]:
        config, data, factory, run, name = self.config, self.data, self.factory, self.run, step.name
        if step.kind == "full":
            return measure_full(config, data, step.seed)
        if step.kind == "set":
            method, size = step.what
            return measure_set(config, data, factory, method, size, step.seed, folder, run, name)
        if step.kind == "attack":
            return attack_set(config, data, factory, step.what[0], step.seed, folder, run, name)
        if step.kind == "defence":
            return defend(config, data, factory, step.what[0], step.seed, run, folder)
        axis, value, attack = step.what
        return ablate_one(config, data, factory, axis, value, attack, folder, run, name)


def phases_of(config: Config, methods: Sequence[str]) -> dict[str, list[Step]]:
    """All steps; those of a phase depend on earlier phases only."""
    seeds = range(config.seed, config.seed + config.seeds)
    sizes = dict.fromkeys([*config.images_per_class, config.attack.images_per_class])
    names = dict.fromkeys(methods)
    sets = [
        Step("set", (method, size), seed)
        for size in sizes
        for method in names
        for seed in seeds
        if size in config.images_per_class or method == config.attack.method
    ]
    full = [Step("full", (), seed) for seed in seeds] if config.training.full_epochs else []
    clean = [Step("set", (config.attack.method, config.attack.images_per_class), seed) for seed in seeds]
    attacks = [Step("attack", (attack,), seed) for attack in ATTACKS for seed in seeds]
    arms = ("clean", *ATTACKS) if config.attack.defences else ()
    return {
        "condensing": [*full, *sets, *(step for step in clean if step not in sets)],
        "attacking": [*attacks, *(Step("ablation", what, config.seed) for what in ablations_of(config))],
        "defending": [Step("defence", (arm,), seed) for arm in arms for seed in seeds],
    }


def do_all(place: Workplace, phases: Mapping[str, Sequence[Step]]) -> None:
    """Do all steps, phase by phase, in as many processes as the settings say; steps that are done cost nothing.

    Args:
        place: of the calling process.
        phases: of `phases_of`.
    """
    left = {name: [step for step in steps if not _is_done(place.run, step)] for name, steps in phases.items()}
    total = sum(map(len, left.values()))
    if place.config.workers < 2 or total < 2:
        for step in (step for steps in left.values() for step in steps):
            place.do(step)
    else:
        place.run.step(f"shared-{total}-steps", lambda _: _share(place, left, total))


def _is_done(run: Run, step: Step) -> bool:
    return (run.folder / "steps" / step.name / "result.json").exists()


def _share(place: Workplace, phases: Mapping[str, Sequence[Step]], total: int) -> dict[str, Any]:
    workers = min(place.config.workers, total)
    threads = max(torch.get_num_threads() // workers, 1)
    done = 0
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_open,
        initargs=(place.config, place.run.folder, threads, os.getpid()),
    ) as pool:
        try:
            for steps in phases.values():
                for future in as_completed([pool.submit(_do, step) for step in steps]):
                    done += 1
                    log.info("%s: done", future.result())
                    place.run.progress(f"shared-{total}-steps", done, total, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {"steps": total}


_place: Workplace | None = None


def _open(config: Config, folder: Path, threads: int, parent: int) -> None:
    """A process that shares the steps: its own copy of the data, the same folder."""
    global _place
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    data = load_data(config.data, zca_eps=config.zca_eps, held_out=config.held_out)
    _place = Workplace(config, data, network_of(config, data), Run(folder, quiet=True))


def _leave_with(parent: int) -> None:
    """End when the run's own process was killed: a resumed run must be alone in the folder."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do(step: Step) -> str:
    assert _place is not None
    _place.do(step)
    return step.name
