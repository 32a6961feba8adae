"""The results schema: verdicts are computed, committed results load, bad files get one line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.errors import UserError
from tenfold.results import Claim, Results, claim, count_verdicts, load_results, meets, verdict_of

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


VERDICTS = [
    (1.9, (0.7, 3.1), ">= 0.5", "holds"),
    (1.9, (0.4, 3.1), ">= 0.5", "not settled"),
    (0.2, (-0.1, 0.4), ">= 0.5", "does not hold"),
    (0.0, (-3.1, 3.1), ">= 0", "not settled"),
    (0.0, (0.0, 0.0), "> 0", "does not hold"),
    (0.3, (0.1, 0.5), "< 0.4", "not settled"),
    (0.3, (0.1, 0.39), "< 0.4", "holds"),
    (1.9, None, ">= 0.5", "not settled"),  # one run, and chance plays a part
]


@pytest.mark.parametrize(("value", "interval", "target", "verdict"), VERDICTS)
def test_a_verdict_is_what_the_whole_interval_says(value, interval, target, verdict):
    assert verdict_of(value, target, interval) == verdict


def test_without_chance_the_value_decides():
    assert verdict_of(0, "== 0", chance=False) == "holds"
    assert verdict_of(0.3, ">= 0.5", chance=False) == "does not hold"
    assert claim("same", "Equal", value=0, target="== 0", unit="bits", baseline="b").verdict == "holds"


@given(
    ends=st.tuples(st.floats(-5, 5), st.floats(-5, 5)).map(sorted), bound=st.integers(-5, 5),
    sign=st.sampled_from([">=", ">", "<=", "<"]),
)  # fmt: skip
def test_an_opposite_target_never_holds_with_its_opposite(ends, bound, sign):
    opposite = {">=": "<", ">": "<=", "<=": ">", "<": ">="}[sign]
    middle = sum(ends) / 2
    one, other = (verdict_of(middle, f"{s} {bound}", tuple(ends)) for s in (sign, opposite))
    assert {one, other} in ({"holds", "does not hold"}, {"not settled"})


def test_verdicts_are_counted_in_words():
    claims = [claim(str(n), "s", value=v, interval=i, target="> 0", unit="u", baseline="b")
              for n, (v, i) in enumerate([(1, (0.5, 2)), (1, (-1, 3)), (-1, (-2, -0.5))])]  # fmt: skip
    assert count_verdicts(claims) == "1 holds, 1 not settled, 1 does not hold"
    assert count_verdicts([claims[0]] * 3) == "3 hold"


def test_a_typed_verdict_is_refused_and_one_of_the_first_schema_is_made_anew():
    honest = claim("gain", "It gains", value=-1.0, target="> 0", unit="points", baseline="joint", interval=(-2, -0.5))
    assert honest.verdict == "does not hold"
    with pytest.raises(ValidationError, match="verdict 'holds'"):
        Claim.model_validate(honest.model_dump() | {"verdict": "holds"})
    old = {name: value for name, value in honest.model_dump().items() if name not in ("verdict", "chance")}
    assert Claim.model_validate(old | {"holds": True}) == honest


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
