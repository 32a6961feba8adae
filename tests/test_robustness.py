"""Generated command lines, configurations, data and damaged models: a part of ``benchmarks/robustness_inputs.py``."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tenfold.catalog import SYSTEMS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "robustness_inputs.py"
CASES_EACH = 15


@pytest.fixture(scope="module")
def inputs():
    spec = importlib.util.spec_from_file_location("robustness_inputs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("system", [system.id for system in SYSTEMS])
def test_whatever_is_given_ends_right_or_in_one_line(finished_run, inputs, system):
    rows = inputs.examine(1, range(CASES_EACH), {system: finished_run(system)})
    assert len(rows) == CASES_EACH
    assert [row for row in rows if row["problem"]] == []
