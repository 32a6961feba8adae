"""Numbers for people, and the small axis that shows a claim."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.report.display import aligned, claim_scale, duration, exact, listing, number, target
from tenfold.results import claim

FINITE = st.floats(-1e300, 1e300)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        ("a text", "a text"),
        (3, "3"),
        (2.0, "2"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (-0.5, "−0.5"),
        (1234.56, "1,235"),
        (940048.0, "940,048"),
        (3.25e9, "3.25\u00a0G"),
        (1e-7, "1e−7"),
        (-4.567e21, "−4.57e21"),
    ],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@given(FINITE)
def test_a_rounded_number_is_near_the_number(value):
    text = number(value).replace(",", "").replace("−", "-")
    mantissa, _, prefix = text.partition("\u00a0")
    shown = float(mantissa) * {"": 1, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}[prefix]
    assert shown == pytest.approx(value, rel=6e-3)


def test_numbers_of_a_column_have_the_same_decimals():
    assert aligned([84.7, 83.625, None, 9.1]) == ["84.70", "83.62", "–", "9.10"]
    assert aligned([0.5, 1.0]) == ["0.5", "1.0"]
    assert aligned([1, 29594]) == ["1", "29,594"]
    assert aligned([500.0, 0.0021]) == ["500", "0.0021"]
    assert aligned(["a", 2.5]) == ["a", "2.5"]
    assert aligned([]) == []


@given(st.lists(st.none() | FINITE, max_size=6))
def test_aligning_keeps_every_number_recognisable(values):
    for value, text in zip(values, aligned(values), strict=True):
        assert (text == "–") == (value is None)
        if value:
            assert re.search("[1-9]", text)


def test_lists_are_shown_whole_when_short_and_by_their_ends_when_long():
    assert listing([0.5, None, 0.25]) == "0.50 · – · 0.25"
    assert listing([float(n) for n in range(60)]) == "0 … 59 (60 values)"
    assert listing([]) == "–"


def test_other_texts():
    assert [duration(seconds) for seconds in (0.123, 38.24, 59.99, 431.7, 7260)] == [
        "0.12\u00a0s", "38.2\u00a0s", "60.0\u00a0s", "7\u00a0min 12\u00a0s", "2\u00a0h 1\u00a0min"
    ]  # fmt: skip
    assert target(">= -0.5") == "≥ −0.5"
    assert target("== 0") == "= 0"
    assert (exact(0.1), exact(3), exact(None), exact("x")) == ("0.1", "3", "", "")


def scale(value, goal, interval=None):
    return claim_scale(claim("c", "s", value=value, target=goal, unit="u", baseline="b", interval=interval))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from([">=", ">", "<=", "<"]))
def test_the_dot_lies_in_the_zone_where_the_claim_holds(value, goal, sign):
    made = claim("c", "s", value=value, target=f"{sign} {goal:.3f}", unit="u", baseline="b", chance=False)
    shown = claim_scale(made)
    assert 0 <= shown.value <= 100 and 0 <= shown.target <= 100
    inside = shown.zone[0] <= shown.value <= shown.zone[1]
    assert inside == made.holds or shown.value == shown.target


def test_the_axis_spans_value_interval_and_target():
    shown = scale(2.0, ">= 0", interval=(1.0, 4.0))
    assert (shown.value, shown.target, shown.zone) == (50.0, 8.33, (8.33, 100.0))
    assert shown.interval == (29.17, 91.67)
    assert scale(0.0, "== 0").value == 50.0
    assert scale(None, ">= 0") is None
