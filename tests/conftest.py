"""Modules that tests share, one finished run of each system per process, and which tests go to which process."""

import os
import sys
from functools import cache
from pathlib import Path

import pytest

from tenfold.catalog import SYSTEMS

sys.path.insert(0, str(Path(__file__).parent / "shared"))

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

_RUNS: dict = {}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A stranger's folder of 200 photos, one of them broken (``tests/shared/photos.py``); read only."""
    from photos import make_photos

    return make_photos(tmp_path_factory.mktemp("stranger") / "photos")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Gives the folder of a finished run of a system, by its id; made once per process. Tests must not change it."""
    from systems_for_tests import CASES

    from tenfold.cli import main

    def run_of(system):
        if system not in _RUNS:
            folder = tmp_path_factory.mktemp(system) / "run"
            workers = ["--workers", "1"]
            assert main(["run", system, "--out", str(folder), "--quiet", *workers, *CASES[system].fast]) == 0
            _RUNS[system] = folder
        return _RUNS[system]

    return run_of


def pytest_collection_modifyitems(items):
    """What uses a finished run comes first: long groups first, so that no process works alone at the end."""
    items.sort(key=lambda item: "finished_run" not in item.fixturenames)


def pytest_xdist_make_scheduler(config, log):
    """A file stays in one process, since its tests share what they made; so does all that uses one system's run."""
    from xdist.scheduler import LoadScopeScheduling

    class BySystem(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return BySystem(config, log)


def group_of(nodeid):
    """The group of a test by its name: its system where it uses that system's finished run, else its file."""
    file = nodeid.partition("::")[0]
    system = next((known for known in _SYSTEMS if f"[{known}" in nodeid or f"-{known}]" in nodeid), None)
    room = next((known for known in _SYSTEMS if f"/{known.replace('-', '_')}/" in file), None)
    if system and _uses_runs(file):
        return f"run of {system}"
    return f"run of {room}" if room and _uses_runs(file) else file


@cache
def _uses_runs(file):
    return "finished_run" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")


_SYSTEMS = [system.id for system in SYSTEMS]
