"""The examples run, and show what they say."""

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name: importlib.import_module(name).main


def test_upper_confidence_explores(example):
    by_score, by_bound, uncertainty = example("rank_by_upper_confidence")()
    assert set(by_score) != set(by_bound)
    assert uncertainty[by_bound].mean() > uncertainty[by_score].mean()


def test_rejecting_the_unsure_lowers_the_error(example):
    wrong, answered = example("reject_option")()
    assert 0.3 < answered.double().mean() < 1
    assert wrong[answered].double().mean() < wrong.double().mean()


def test_one_pass_chooses_rows_like_many(example):
    overlaps = example("active_learning")()
    assert overlaps["one pass"] > overlaps["5 passes"]


def test_drift_shows(example):
    report = example("monitor_drift")()
    assert report[0][2] < 0.05
    assert report[-1][2] > 0.5


def test_a_gate_for_early_exits(example):
    accuracies = example("gate_early_exits")()
    assert abs(accuracies["uncertainty"] - accuracies["confidence"]) < 0.05


def test_every_example_is_tested():
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.stem.endswith("_common") or f'"{path.stem}"' in here or f"{path.stem}" in sys.modules, path


def test_the_audit_tells_a_poisoned_set_from_a_clean_one(example):
    verdicts = example("audit_a_condensed_set")()
    assert verdicts["clean"].verdict.startswith("clean")
    assert verdicts["poisoned"].verdict == "backdoored"
    assert verdicts["poisoned"].findings[0].confirmation.target == 3
