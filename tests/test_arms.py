"""Arms over seeds: intervals of known cases, spreads, and what one seed cannot say."""

import numpy as np
import pytest
from scipy import stats

from tenfold.arms import bars, claim_of_difference, difference, mean, paired_bootstrap, paired_difference, spread


def arm(*runs):
    return [{"accuracy": accuracy, "curve": curve} for accuracy, curve in runs]


OUTCOMES = {
    "ours": arm((2.0, [1, 2]), (4.0, [3, 4]), (6.0, [5, 6])),
    "joint": arm((1.0, [0, 0]), (2.0, [0, 0]), (3.0, [0, 3])),
}


def test_paired_interval_of_a_known_case():
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3: mean 2, t(2) = 4.3027
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert str(paired_difference([1.0], [0.5]).low) == "nan"


def test_difference_of_arms_goes_seed_by_seed():
    assert difference(OUTCOMES, "accuracy", "ours", "joint") == paired_difference([2, 4, 6], [1, 2, 3])
    assert difference(OUTCOMES, lambda run: run["curve"][1], "ours", None).mean == 4.0
    with pytest.raises(ValueError, match="equal in shape"):
        paired_difference([1, 2], [1])


def test_equal_differences_leave_no_doubt():
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).interval == (1.0, 1.0)


def test_means_and_spreads_keep_the_form_of_the_quantity():
    assert mean(OUTCOMES["ours"], "curve") == [3, 4]
    assert spread(OUTCOMES["ours"], "curve") == [2, 2]
    assert spread(OUTCOMES["ours"][:1], "accuracy") is None
    drawn = bars("accuracy", OUTCOMES, "accuracy")
    assert (drawn.x, drawn.y, drawn.error) == (["ours", "joint"], [4, 2], [2, 1])
    assert bars("accuracy", {"ours": OUTCOMES["ours"][:1]}, "accuracy").error is None


def test_bootstrap_over_examples_agrees_with_the_normal_interval_and_is_the_same_each_time():
    rng = np.random.default_rng(0)
    ours, baseline = rng.normal(0.3, 1, 4000), rng.normal(0, 1, 4000)
    found = paired_bootstrap(ours, baseline)
    half = stats.norm.ppf(0.975) * (ours - baseline).std(ddof=1) / 4000**0.5
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)
    assert found == paired_bootstrap(ours, baseline)
    seeds = paired_bootstrap(np.stack([ours, ours]), np.stack([baseline, baseline]))
    assert seeds == found


def test_one_seed_settles_nothing_without_examples():
    one = paired_difference([2.0], [1.0])
    made = claim_of_difference("c", "s", one, baseline="b", unit="points")
    assert made.verdict == "not settled" and made.interval is None
