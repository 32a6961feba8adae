"""Workers of one search, killed at random: is a candidate lost, is one computed twice, is the archive another?

    python benchmarks/backbone_search_faults.py [--kills 30] [--workers 4] [--seed 0]

Four workers share a study of 60 candidates (of a fraction of a second each, so that kills fall everywhere: while a
genome is claimed, evaluated, told) on SQLite and on a PostgreSQL server that is started here; one of them is killed
with SIGKILL and begun anew, at random, until so many were. In mode ``sync`` the archive must be, byte for byte, that of
one worker that nobody disturbed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "backbone_search"))

import postgres
from faults import BEAT, disturb, options, task

from tenfold.errors import UserError
from tenfold.systems.backbone_search.evolution.archive import archive_lines
from tenfold.systems.backbone_search.evolution.sampler import SLOT
from tenfold.systems.backbone_search.evolution.storage import open_storage
from tenfold.systems.backbone_search.evolution.worker import work

ROOT = Path(__file__).parents[1]
SEARCH = {"population": 12, "generations": 5}
LIMITS = {"size": 14}


def problem(**changes):
    """The search: 256 genomes, of which 60 are asked for."""
    return task(limits=LIMITS, **changes)


def measure(url, mode, arguments, undisturbed):
    """Disturb a search on a storage, and say what came of it."""
    began = time.monotonic()
    killed = disturb(url, workers=arguments.workers, kills=arguments.kills, seconds=0.25, pause=(0.1, 0.6),
                     seed=arguments.seed, limits=LIMITS, mode=mode, **SEARCH)  # fmt: skip
    found = work(problem(), options(mode=mode, **SEARCH), url=url, **BEAT)
    study = optuna.load_study(study_name="search", storage=open_storage(url))
    slots = [t.system_attrs[SLOT] for t in study.trials if t.state == TrialState.COMPLETE and SLOT in t.system_attrs]
    try:
        work(problem(fingerprint="another seed"), options(mode=mode, **SEARCH), url=url)
        refused = False
    except UserError:
        refused = True
    total = SEARCH["population"] * SEARCH["generations"]
    return {
        "storage": url.partition(":")[0],
        "mode": mode,
        "killed": killed,
        "candidates": len(found),
        "lost": total - len({c.slot for c in found}),
        "finished_twice": len(slots) - len(set(slots)),
        "genomes_twice": len(found) - len({c.digest for c in found}),
        "same_archive": archive_lines(found) == undisturbed if mode == "sync" else None,
        "other_seed_refused": refused,
        "seconds": round(time.monotonic() - began, 1),
    }


def main():
    """Disturb searches on both storages, and write the results."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--workers", type=int, default=4)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--mode", choices=["sync", "async"], action="append")
    arguments.add_argument("--out", default=str(ROOT / "benchmarks/results/backbone-search-faults.json"))
    arguments = arguments.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = archive_lines(work(problem(), options(**SEARCH), url=f"sqlite:///{folder}/alone.db"))
        for mode in arguments.mode or ("sync", "async"):
            if postgres.AVAILABLE:
                with postgres.postgres_server() as url:
                    rows.append(measure(url, mode, arguments, undisturbed))
                write(arguments, rows)
            rows.append(measure(f"sqlite:///{folder}/{mode}.db", mode, arguments, undisturbed))
            write(arguments, rows)


def write(arguments, rows):
    """Keep what is measured so far."""
    print(rows[-1], flush=True)
    facts = {"workers": arguments.workers, "candidates": SEARCH["population"] * SEARCH["generations"]}
    Path(arguments.out).write_text(json.dumps({**facts, "optuna": optuna.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
