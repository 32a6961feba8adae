"""Where a study lives: SQLite in the run folder, a journal file, PostgreSQL; opened, checked, repaired."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from tenfold.errors import UserError
from tenfold.systems.backbone_search.evolution.candidates import SearchTask
from tenfold.systems.backbone_search.evolution.sampler import RETRIES, SLOT, VOID

HEARTBEAT, GRACE = 60, 180

# Heartbeats have been "experimental" since version 2.9; a line for each would hide what matters.
warnings.filterwarnings("ignore", category=ExperimentalWarning)


def open_storage(url: str, heartbeat: int = HEARTBEAT, grace: int = GRACE) -> BaseStorage:
    """Open a storage.

    Args:
        url: ``sqlite:///FILE`` (one machine), ``journal:FILE`` (a shared file system; no heartbeats: the trials of dead
            workers are taken up when the run is resumed), or ``postgresql://USER@HOST/NAME`` (many machines).
        heartbeat: seconds between two signs of life of a worker.
        grace: seconds without one after which its candidate is given to another.

    Raises:
        UserError: the storage cannot be reached, or a package for it is missing.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url.startswith("journal:"):
        return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    if not url.startswith(("sqlite:///", "postgresql")):
        raise UserError(f"a storage is sqlite:///FILE, journal:FILE or postgresql://...; got {url!r}")
    if url.startswith("sqlite:///"):
        folder = Path(url.removeprefix("sqlite:///")).parent
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder} for the storage {url}")
        engine: dict[str, Any] = {"connect_args": {"timeout": 120}}
    else:
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        engine = {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}
    try:
        return RDBStorage(
            url,
            engine_kwargs=engine,
            heartbeat_interval=heartbeat,
            grace_period=grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
    except ImportError as error:
        raise UserError(f"the storage needs a package: pip install 'tenfold[search]' ({error})") from error
    except Exception as error:  # drivers raise errors of their own
        where = url.rpartition("@")[2] if "@" in url else url
        raise UserError(f"cannot reach the storage {where}: {' '.join(str(error).split())[:160]}") from error


def open_study(storage: BaseStorage, name: str, task: SearchTask, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """Open or make a study, and refuse one that belongs to another space, seed, or setting.

    Args:
        storage: see ``open_storage``.
        name: of the study.
        task: whose fingerprints the study must have.
        sampler: asks for genomes.

    Raises:
        UserError: the study is of something else.
    """
    directions: Any = ["maximize", *["minimize"] * len(task.objectives)]
    study = optuna.create_study(
        storage=storage, sampler=sampler, study_name=name, directions=directions, load_if_exists=True
    )
    wanted: Mapping[str, Any] = {
        "space": task.space.fingerprint,
        "task": task.fingerprint,
        "objectives": ["score", *task.objectives],
        "limits": dict(task.limits),
    }
    known = study.user_attrs
    for key, value in wanted.items():
        if key in known and known[key] != value:
            raise UserError(
                f"the study {name!r} belongs to another {key} ({_short(known[key])}, not {_short(value)}): resume it "
                "with the settings and the seed checkpoint it was begun with, or begin another study"
            )
    for key, value in wanted.items():
        if key not in known:
            study.set_user_attr(key, value)
    if hasattr(study, "set_metric_names") and study.metric_names is None:
        study.set_metric_names(["score", *task.objectives])
    return study


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)


def revive(study: optuna.Study, everything: bool = False) -> None:
    """Give candidates of dead workers back to the queue.

    Args:
        study: whose trials.
        everything: no worker lives: what is marked as running is dead, too (when a run is resumed).
    """
    if everything:
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    else:
        optuna.storages.fail_stale_trials(study)
    by_slot: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if SLOT in trial.system_attrs and VOID not in trial.system_attrs:
            by_slot.setdefault(trial.system_attrs[SLOT], []).append(trial)
    again = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    for trials in by_slot.values():
        last = max(trials, key=lambda trial: trial.number)
        if last.state != TrialState.FAIL or any(trial.state == TrialState.COMPLETE for trial in trials):
            continue
        if everything or _ended_long_ago(last):
            again(study, last)


def _ended_long_ago(trial: FrozenTrial) -> bool:
    """Whether the worker that failed a trial has had time to put its retry into the queue."""
    from datetime import datetime

    return trial.datetime_complete is not None and (datetime.now() - trial.datetime_complete).total_seconds() > 5
