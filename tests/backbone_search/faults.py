"""A search of milliseconds, and workers on it that are killed at random: for the tests, and longer in benchmarks."""

import multiprocessing
import os
import signal
import time

import numpy as np

from tenfold.systems.backbone_search.evolution.candidates import Evaluation, EvolutionOptions, SearchTask
from tenfold.systems.backbone_search.evolution.storage import open_storage
from tenfold.systems.backbone_search.evolution.worker import work
from tenfold.systems.backbone_search.space.search_space import SearchSpace

SPACE = SearchSpace({f"s{i}.g{j}": (1, 2, 3, 4) for i in range(2) for j in range(2)})
LIMITS = {"size": 12}
BEAT = {"heartbeat": 1, "grace": 6}
"""Short, so that the dead are found soon; long enough for a worker that waits for a processor to be taken for alive."""


def costs(genome):
    return {"size": float(sum(genome.values()))}


def evaluate(genome, digest):
    a, b, c, d = (float(v) for v in genome.values())
    return Evaluation(float(np.tanh((a * b + c * c + np.sqrt(d)) / 20)), {"a": a})


def task(**changes):
    made = {"costs": costs, "evaluate": evaluate, "objectives": ("size",), "limits": LIMITS, "fingerprint": "x"}
    return SearchTask(SPACE, **{**made, **changes})


def options(**changes):
    return EvolutionOptions(**{"population": 6, "generations": 3, **changes})


class Slow:
    """Candidates that take their time, each its own."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, genome, digest):
        time.sleep(self.seconds * (0.4 + int(digest[:2], 16) / 200))
        return evaluate(genome, digest)


def _one_worker(url, seconds, limits, changes):
    work(task(evaluate=Slow(seconds), limits=limits), options(**changes), url=url, **BEAT)


def _start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=_one_worker, args=arguments)
    process.start()
    return process


def disturb(url, *, workers, kills, seconds=0.05, pause=(0.05, 0.4), seed=0, limits=None, **changes):
    """Several workers, one of which is killed now and then and started anew, until the study is finished.

    Args:
        url: of the storage.
        workers: processes.
        kills: by SIGKILL, at most; fewer where the study is finished before.
        seconds: of a candidate, about.
        pause: between two kills, shortest and longest.
        seed: of whom and when.
        limits: of the task.
        changes: of the evolution's options.

    Returns:
        How many were killed.
    """
    open_storage(url)  # tables are made once
    killed, random = 0, np.random.default_rng(seed)
    limits = limits or LIMITS
    pool = [_start(url, seconds, limits, changes) for _ in range(workers)]
    while any(process.is_alive() for process in pool) or any(process.exitcode != 0 for process in pool):
        time.sleep(float(random.uniform(*pause)))
        place = int(random.integers(workers))
        if killed < kills and pool[place].is_alive():
            os.kill(pool[place].pid, signal.SIGKILL)
            killed += 1
        for place, process in enumerate(pool):
            if not process.is_alive() and process.exitcode != 0:
                process.join()
                if process.exitcode != -signal.SIGKILL:
                    for other in pool:
                        other.kill()
                    raise RuntimeError(f"a worker ended by itself, with {process.exitcode}")
                pool[place] = _start(url, seconds, limits, changes)
    return killed
