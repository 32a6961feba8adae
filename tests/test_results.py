"""The results schema: verdicts are computed, committed results load, bad files get one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.errors import UserError
from tenfold.results import Claim, Results, claim, load_results, meets
from tenfold.statistics import paired_difference

ROOT = Path(__file__).parents[1]


def make(**changes):
    values = {
        "system": "boosted-exits",
        "preset": "tiny",
        "seed": 0,
        "version": "0.1.0",
        "claims": [claim("gain", "It gains", value=1.9, target=">= 0.5", unit="points", baseline="joint")],
        "metrics": {"ours": {"accuracy": 0.9, "curve": [1.0, None]}},
        "cost": {"params": 1, "flops": 2, "seconds": 0.5, "peak_memory_mb": 3.0},
        "environment": {"torch": "2"},
    }
    return Results.model_validate(values | changes)


@given(value=st.floats(-10, 10), bound=st.floats(-10, 10).map(lambda x: round(x, 3)))
def test_verdict_follows_from_value_and_target(value, bound):
    assert meets(value, f">= {bound}") == (value >= bound)
    assert meets(value, f"< {bound}") == (value < bound)


def test_a_typed_verdict_is_refused():
    honest = claim("gain", "It gains", value=-1.0, target="> 0", unit="points", baseline="joint")
    assert not honest.holds
    with pytest.raises(ValidationError, match="holds=True"):
        Claim.model_validate(honest.model_dump() | {"holds": True})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_could_not_be_measured_does_not_hold(value):
    made = claim("gain", "It gains", value=value, target="> 0", unit="points", baseline="joint")
    assert not made.holds
    assert made.value is None


def test_round_trip(tmp_path):
    (tmp_path / "results.json").write_text(make().to_json())
    assert load_results(tmp_path / "results.json") == make()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", json.dumps({"system": 1}).encode()],
    ids=["empty", "cut", "bytes", "list", "type"],
)
def test_files_that_are_no_results_get_one_line(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json") as refused:
        load_results(path)
    assert "\n" not in str(refused.value)


def test_missing_results_get_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_results(tmp_path / "results.json")


def test_every_committed_result_follows_the_schema():
    committed = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    runs = [path for path in committed if "claims" in json.loads(path.read_text())]
    assert runs, "the results of the preset small belong into benchmarks/results"
    for path in runs:
        load_results(path)


def test_paired_interval_of_a_known_case():
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3: mean 2, t(2) = 4.3027
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert str(paired_difference([1.0], [0.5]).low) == "nan"
