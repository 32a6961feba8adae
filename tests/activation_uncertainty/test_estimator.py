"""The auxiliary model, its losses, its metrics and the subset of layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import (
    Estimator,
    equivalent_passes,
    fit_estimator,
    overlap_at,
    quality,
    retention_area,
    retention_curve,
    select_layers,
)
from tenfold.systems.activation_uncertainty.estimator.metrics import bucket_aucs, r2_score, top_auc


def rows(count=2000, passes=None, seed=0):
    """Features, labels of T Gaussian passes, and the true standard deviation."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 12, generator=random)
    true = (0.2 + features[:, :3].square().sum(1) * 0.1).double()
    if passes is None:
        return features, true.square(), true
    draws = torch.randn(passes, count, generator=random, dtype=torch.float64) * true
    return features, draws.var(0), true


@pytest.mark.parametrize(
    ("loss", "low", "high"), [("mse_std", 0.74, 0.86), ("gamma", 0.93, 1.07), ("mse_var", 0.9, 1.1)]
)
def test_level_learnt_from_two_passes(loss, low, high):
    """E[s] is below the standard deviation; E[s^2] is the variance."""
    features, spread, _ = rows(6000, passes=2)
    fitted = fit_estimator(features, spread, loss=loss, passes=2)
    tests, _, truth = rows(2000, seed=1)
    with torch.no_grad():
        ratio = float(fitted.estimator(tests).double().mean() / truth.mean())
    assert low < ratio < high


def test_many_passes_are_learnt_well_and_auto_knows_when():
    features, spread, _ = rows(passes=100)
    tests, _, truth = rows(1000, seed=1)
    fitted = fit_estimator(features, spread, passes=100)
    assert fitted.estimator.loss == "mse_std"
    assert quality(truth, fitted.estimator(tests).detach()).r2 > 0.95
    assert fit_estimator(features[:200], spread[:200], passes=10, epochs=2).estimator.loss == "gamma"


def test_fit_is_deterministic_and_leaves_the_random_state():
    features, spread, _ = rows(300, passes=50)
    state = torch.get_rng_state()
    fits = [fit_estimator(features, spread, epochs=5) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fits[0].estimator(features), fits[1].estimator(features))
    with torch.no_grad():  # as users who only want to predict have it
        assert torch.equal(fit_estimator(features, spread, epochs=5).estimator(features), fits[0].estimator(features))


def test_dead_features_are_left_out_and_the_folded_network_is_the_same():
    features, spread, _ = rows(600, passes=100)
    features = torch.cat([features * 1e4, torch.full((600, 2), 7.0), 1e-9 * torch.randn(600, 1)], 1)
    fitted = fit_estimator(features, spread, epochs=30)
    assert fitted.dead == 3
    assert fitted.r2 > 0.5
    moved = features.clone()
    moved[:, -3:] = 1e6
    estimator = fitted.estimator
    torch.testing.assert_close(estimator(moved), estimator(features))
    torch.testing.assert_close(estimator.link(estimator.folded()(features)), estimator(features), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, s: (f, s * 0), "all labels are 0"),
        (lambda f, s: (f, s * 0 + 3), "all labels are 3"),
        (lambda f, s: (f[:10], s[:10]), "too few"),
        (lambda f, s: (f.index_fill(0, torch.tensor([4]), torch.nan), s), "feature 0 of auxiliary row 4 is NaN"),
        (lambda f, s: (f * 0 + 1, s), "no feature changes"),
        (lambda f, s: (f, s.index_fill(0, torch.tensor([4]), torch.nan)), "NaN"),
        (lambda f, s: (f, s[:50]), "do not belong together"),
    ],
)
def test_rows_from_which_nothing_can_be_learnt(change, message):
    """No dropout, and bad rows."""
    features, spread, _ = rows(100, passes=10)
    with pytest.raises(UserError, match=message):
        fit_estimator(*change(features, spread))


def test_buckets():
    features, spread, _ = rows(passes=100)
    tests, _, truth = rows(1000, seed=1)
    fitted = fit_estimator(features, spread, task="buckets", buckets=5).estimator
    probabilities = fitted.bucket_probabilities(tests).detach()
    assert probabilities.shape == (1000, 5)
    aucs = bucket_aucs(truth, probabilities, fitted.bucket_edges)
    assert min(aucs[0], aucs[-1]) > 0.95
    assert (fitted.bucket_levels.diff() > 0).all()
    assert quality(truth, fitted(tests).detach()).spearman > 0.9
    with pytest.raises(UserError, match="regression"):
        fit_estimator(features, spread, epochs=1).estimator.bucket_probabilities(tests)


def test_metrics_on_small_cases():
    assert r2_score([1, 2, 3], [1, 2, 3]) == 1
    assert r2_score([1, 2, 3], [2, 2, 2]) == 0  # the test's own mean
    with pytest.raises(UserError, match="not defined"):
        r2_score([2, 2], [1, 2])
    assert top_auc(range(10), range(10)) == 1
    assert top_auc(range(10), range(10), bottom=True) == 1
    assert top_auc(range(10), [0] * 10) == 0.5
    shares, errors = retention_curve([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], points=4)
    assert (shares, errors) == ([0.25, 0.5, 0.75, 1.0], [0, 0, 1 / 3, 0.5])
    assert retention_area([0, 0, 1, 1], [1, 2, 3, 4]) == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)
    assert overlap_at(2, [1, 2, 3, 4], [4, 1, 2, 3]) == 0.5
    assert equivalent_passes(0.5, {5: 0.25, 20: 0.75}) == (pytest.approx(10), False)
    assert equivalent_passes(0.8, {5: 0.25, 20: 0.75}) == (20, True)
    assert equivalent_passes(0.1, {5: 0.25, 20: 0.75}) == (5, False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=5, max_size=40, unique=True), st.integers(0, 9))
def test_metrics_do_not_depend_on_the_order_of_rows(labels, seed):
    random = np.random.default_rng(seed)
    estimates, order = random.random(len(labels)), random.permutation(len(labels))
    labels = np.array(labels)
    one, other = quality(labels, estimates), quality(labels[order], estimates[order])
    assert one.r2 == pytest.approx(other.r2)
    assert one.auc_top == pytest.approx(other.auc_top)
    assert one.spearman == pytest.approx(other.spearman, nan_ok=True)


def test_the_cheapest_layers_within_the_tolerance_are_chosen():
    features, spread, _ = rows(passes=100)
    slices = {"useful": slice(0, 3), "noise": slice(3, 8), "more": slice(8, 12)}
    selection = select_layers(slices, lambda c: fit_estimator(features[:, c], spread, epochs=60), tolerance=0.02)
    assert selection.chosen.names == ("useful",)
    kinds = {score.kind for score in selection.scores}
    assert {"all", "single", "prefix", "suffix"} <= kinds
    assert selection.scores[0].names == tuple(slices)
    assert Estimator(3).multiply_adds == selection.chosen.multiply_adds
