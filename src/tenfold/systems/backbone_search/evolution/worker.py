"""A worker: asks for genomes, evaluates them, tells; as many as one likes on one study."""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import NSGAIISampler, TPESampler
from optuna.trial import TrialState

import tenfold
from tenfold.errors import RunStopped, UserError
from tenfold.systems.backbone_search.evolution.archive import front_of
from tenfold.systems.backbone_search.evolution.candidates import (
    Candidate,
    Evaluation,
    EvolutionOptions,
    SearchTask,
)
from tenfold.systems.backbone_search.evolution.sampler import (
    GENOME,
    RETRY_OF,
    SLOT,
    VOID,
    EvolutionSampler,
    completed,
    finished_slots,
    free_slot,
    is_repeated,
)
from tenfold.systems.backbone_search.evolution.storage import open_storage, open_study, revive
from tenfold.systems.backbone_search.objectives.limits import violations

_INFEASIBLE_AT_MOST = 50
"""Times the budget: how many candidates beyond the limits, none of them trained, Optuna's samplers may propose."""


class _Void(Exception):
    """The trial has no slot."""


def make_sampler(task: SearchTask, options: EvolutionOptions, patience: float = 180.0) -> optuna.samplers.BaseSampler:
    """The sampler of a strategy."""
    if options.strategy == "optuna-nsga2":
        return NSGAIISampler(population_size=options.population, seed=options.seed)
    if options.strategy == "optuna-tpe":
        return TPESampler(seed=options.seed)
    return EvolutionSampler(task, options, patience)


def work(
    task: SearchTask,
    options: EvolutionOptions,
    *,
    url: str,
    name: str = "search",
    heartbeat: int = 60,
    grace: int = 180,
    alone: bool = False,
    on_candidate: Callable[[int, int], None] | None = None,
    weights: Path | None = None,
) -> list[Candidate]:
    """Work on a study until all its candidates are finished.

    Args:
        task: the problem.
        options: how genomes are drawn; the same in every worker.
        url: of the storage, see ``open_storage``.
        name: of the study.
        heartbeat: seconds between signs of life.
        grace: seconds without one after which a candidate goes to another worker.
        alone: no other worker is alive: what is marked as running is taken up at once.
        on_candidate: called with the numbers of finished and of all candidates.
        weights: folder of the candidates' weights by hash, in which those of the present front are kept.

    Returns:
        All candidates, by slot.

    Raises:
        UserError: settings without meaning, an unreachable storage, or a study of something else.
    """
    options.check()
    task.check()
    if options.screen and task.cheap is None:
        raise UserError("a screen needs a cheap score: give the task one, cheap(genome, digest)")
    study = open_study(open_storage(url, heartbeat, grace), name, task, make_sampler(task, options, grace))
    if alone:
        revive(study, everything=True)
    if options.strategy.startswith("optuna-"):
        return _stock(study, task, options, on_candidate)
    sampler = study.sampler
    assert isinstance(sampler, EvolutionSampler)
    pause = 0.05
    if weights is not None:
        prune_weights(study, task.objectives, weights, alone)
    while True:
        revive(study)
        done = finished_slots(study)
        if on_candidate is not None:
            on_candidate(len(done), options.budget)
        if len(done) >= options.budget:
            return candidates_of(study)
        if _work_is_there(study, sampler):
            _screen(study, sampler)
            _work_once(study, task)
            if weights is not None:
                prune_weights(study, task.objectives, weights)
            pause = 0.05
        else:
            time.sleep(pause)
            pause = min(2 * pause, 1.0)


def _work_once(study: optuna.Study, task: SearchTask) -> None:
    """Ask, evaluate, tell. A worker that gave no sign of life for too long finds its candidate given to another: it
    leaves what it found and goes on.
    """
    asked: list[int] = []
    broken: list[BaseException] = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        asked.append(trial._trial_id)
        try:
            return _objective(trial, task)
        except (_Void, UpdateFinishedTrialError):
            raise
        except BaseException as error:  # of the task's own
            broken.append(error)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=(_Void,))
    except (ValueError, UpdateFinishedTrialError):  # what Optuna raises when a trial is told that has ended
        if broken or not asked or study._storage.get_trial(asked[-1]).state != TrialState.FAIL:
            raise


def search_backbones(
    task: SearchTask, options: EvolutionOptions | None = None, *, url: str | None = None, name: str = "search"
) -> list[Candidate]:
    """Search until all candidates are finished; called again after a stop, it goes on where it was.

    Args:
        task: the problem: space, costs, and how a genome is trained and scored.
        options: how genomes are drawn.
        url: of the storage: ``sqlite:///FILE``, ``journal:FILE`` or ``postgresql://USER@HOST/NAME``, on which other
            processes may call this, too; a temporary one where ``None``.
        name: of the study.

    Returns:
        All candidates, by slot; see ``front_of`` and ``pick``.

    Raises:
        UserError: settings without meaning, an unreachable storage, or a study of something else.

    Example:
        >>> from tenfold.systems.backbone_search import Evaluation, SearchSpace
        >>> task = SearchTask(
        ...     SearchSpace({"width": (8, 16, 24, 32)}),
        ...     costs=lambda genome: {"size": genome["width"]},
        ...     evaluate=lambda genome, digest: Evaluation(1 - 1 / genome["width"]),
        ...     objectives=("size",),
        ... )
        >>> [c.genome["width"] for c in search_backbones(task, EvolutionOptions(population=2, generations=2))]
        [8, 24, 16, 32]
    """
    chosen = options or EvolutionOptions()
    if url is not None:
        return work(task, chosen, url=url, name=name)
    with TemporaryDirectory() as folder:
        return work(task, chosen, url=f"journal:{folder}/study.log", name=name)


def _work_is_there(study: optuna.Study, sampler: EvolutionSampler) -> bool:
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.WAITING for trial in trials):
        return True
    slot, options = free_slot(trials), sampler.options
    return slot < options.budget and sampler.is_open(study, slot // options.population)


def _screen(study: optuna.Study, sampler: EvolutionSampler) -> None:
    """Score a generation's offspring cheaply before any of them is asked for: others wait for a trial in mid-claim."""
    generation = free_slot(study.get_trials(deepcopy=False)) // sampler.options.population
    if sampler.options.screen and 0 < generation < sampler.options.generations and sampler.is_open(study, generation):
        sampler.screened(study, generation)


def _objective(trial: optuna.Trial, task: SearchTask) -> tuple[float, ...]:
    genome = {name: trial.suggest_categorical(name, choices) for name, choices in task.space.genes.items()}
    attributes = trial.storage.get_trial_system_attrs(trial._trial_id)
    if VOID in attributes or SLOT not in attributes:
        raise _Void
    if RETRY_OF in attributes and is_repeated(trial.study, trial.number, attributes[SLOT]):
        trial.storage.set_trial_system_attr(trial._trial_id, VOID, True)
        raise _Void
    return _evaluate(trial, task, dict(attributes[GENOME]) or genome)


def _evaluate(trial: optuna.Trial, task: SearchTask, genome: dict[str, Any], train: bool = True) -> tuple[float, ...]:
    costs = dict(task.costs(genome))
    over = violations(costs, task.limits)
    digest = task.space.digest(genome)
    for name, limit in task.limits.items():
        if name not in trial.constraints:  # a retry has those of the first try
            trial.set_constraint(name, costs[name] / limit - 1)
    started = time.monotonic()
    evaluation = Evaluation(0.0, {"untrained": True})
    if train or not any(over.values()):
        try:
            evaluation = task.evaluate(genome, digest)
        except RunStopped as error:  # it diverged: a bad candidate, not a broken search
            evaluation = Evaluation(0.0, {"failed": str(error)})
    facts = {
        "genome": task.space.canonical(genome),
        "digest": digest,
        "costs": costs,
        "violation": sum(over.values()),
        "details": dict(evaluation.details),
        "seconds": round(time.monotonic() - started, 3),
        "host": socket.gethostname(),
        "version": tenfold.__version__,
    }
    for key, value in facts.items():
        trial.set_user_attr(key, value)
    return (float(evaluation.score), *(float(costs[name]) for name in task.objectives))


def _stock(
    study: optuna.Study, task: SearchTask, options: EvolutionOptions, on_candidate: Callable[[int, int], None] | None
) -> list[Candidate]:
    """Optuna's own samplers: proposals beyond the limits are told as such and not trained, and do not count.

    A resumed study draws from a generator that begins anew, as these samplers do.
    """

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        genome = {name: trial.suggest_categorical(name, choices) for name, choices in task.space.genes.items()}
        return _evaluate(trial, task, genome, train=False)

    def trained() -> int:
        done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return sum(trial.user_attrs.get("violation", 1) == 0 for trial in done)

    while trained() < options.budget and len(study.trials) < _INFEASIBLE_AT_MOST * options.budget:
        study.optimize(objective, n_trials=1)
        if on_candidate is not None:
            on_candidate(trained(), options.budget)
    done = [t for t in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) if t.user_attrs["violation"] == 0]
    return [_candidate(trial, slot, slot // options.population) for slot, trial in enumerate(done)]


def candidates_of(study: optuna.Study) -> list[Candidate]:
    """All finished candidates of a study, by slot."""
    key = EvolutionSampler._get_generation_key()
    return [
        _candidate(trial, slot, int(trial.system_attrs.get(key, 0))) for slot, trial in sorted(completed(study).items())
    ]


def _candidate(trial: Any, slot: int, generation: int) -> Candidate:
    facts = trial.user_attrs
    return Candidate(
        slot=slot,
        generation=generation,
        genome=facts["genome"],
        digest=facts["digest"],
        score=trial.values[0],
        costs=facts["costs"],
        violation=facts["violation"],
        details={"seconds": facts["seconds"], **facts["details"]},
    )


def prune_weights(study: optuna.Study, names: Sequence[str], folder: Path, everything: bool = False) -> None:
    """Keep the weights of the present front only: files are named by hash, those of dominated candidates go.

    Args:
        study: whose candidates.
        names: of the costs that are minimised.
        folder: of the files.
        everything: no other worker lives, so what belongs to no finished candidate is of a dead one and goes, too.
    """
    found = candidates_of(study)
    kept, finished = {candidate.digest for candidate in front_of(found, names)}, {c.digest for c in found}
    for path in folder.iterdir():
        if path.stem not in kept and (everything or path.stem in finished):
            path.unlink(missing_ok=True)
