"""Modules that tests share, one finished run of each system per process, and which tests go to which process."""

import os
import sys
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
    """A file stays in one process, since its tests share what they made; so do all tests on one system's finished run.

    Long groups come first, so that no process works alone at the end.
    """
    rooms = {system.id.replace("-", "_") for system in SYSTEMS}
    for item in items:
        own = getattr(getattr(item, "callspec", None), "params", {}).get("system")
        room = next((part for part in item.path.parts if part in rooms), None)
        if own is None and room and "finished_run" in item.fixturenames:
            own = room.replace("_", "-")
        item.add_marker(pytest.mark.xdist_group(f"run of {own}" if own else str(item.path)))
    items.sort(key=lambda item: "finished_run" not in item.fixturenames)
