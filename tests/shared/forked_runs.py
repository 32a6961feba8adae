"""Runs in forked processes, which have imported everything already: a run of seconds takes seconds."""

import importlib
import json
import os
import sys
import time
from pathlib import Path

from systems_for_tests import CASES

import tenfold.training.lightning_task  # noqa: F401 (imported once, for all)
from tenfold.catalog import SYSTEMS
from tenfold.cli import main


def finished_runs(folder, systems):
    """A finished run of each system in ``folder``, by system, and the seconds that it took; what is there is taken.

    What a run imports while it works is imported here afterwards, so that later runs find it.
    """
    _ = [(system.recipe, system.commands) for system in SYSTEMS]
    runs, seconds = {}, {}
    for system in systems:
        runs[system], note = Path(folder) / system, Path(folder) / f"{system}.json"
        if not note.exists():
            began, child = time.monotonic(), os.fork()
            if child == 0:
                fast = ["--quiet", "--workers", "1", *CASES[system].fast]
                code = main(["run", system, "--out", str(runs[system]), "--resume", *fast])
                note.with_suffix(".modules").write_text(json.dumps(list(sys.modules)))
                os._exit(code)
            if ended(child, 900) != 0:
                raise SystemExit(f"{system} does not run at all")
            modules = json.loads(note.with_suffix(".modules").read_text())
            note.write_text(json.dumps({"seconds": time.monotonic() - began, "modules": modules}))
        known = json.loads(note.read_text())
        seconds[system] = known["seconds"]
        for name in known["modules"]:
            if name not in sys.modules and not name.startswith("__"):
                try:
                    importlib.import_module(name)
                except Exception:  # some names are no modules of their own
                    continue
        print(f"{system}: {seconds[system]:.1f} s", flush=True)
    return runs, seconds


def ended(child, within=None):
    """The exit code of a process (negative: the signal), or ``None`` where it has not ended in so many seconds."""
    until = None if within is None else time.monotonic() + within
    while True:
        found, status = os.waitpid(child, 0 if until is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.005)
