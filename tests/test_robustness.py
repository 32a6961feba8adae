"""Generated command lines, configurations, damaged models and files: a part of ``benchmarks/robustness_inputs.py``."""

import importlib.util
from pathlib import Path

import pytest

from tenfold.catalog import SYSTEMS, find_system

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "robustness_inputs.py"
CASES_EACH = 40


@pytest.fixture(scope="module")
def inputs():
    spec = importlib.util.spec_from_file_location("robustness_inputs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("system", [system.id for system in SYSTEMS])
def test_whatever_is_given_ends_right_or_in_one_line(finished_run, inputs, system, monkeypatch):
    folder = finished_run(system)
    monkeypatch.setattr(find_system(system).recipe, "run", inputs.reached)
    counts, problems = inputs.examine(1, CASES_EACH, {system: folder})
    assert sum(counts.values()) == CASES_EACH
    assert problems == []
