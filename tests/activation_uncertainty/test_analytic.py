"""Closed form, moment propagation, delta method: against many passes."""

import pytest
import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import (
    DropoutController,
    LinearCalibration,
    MomentPropagation,
    Target,
    closed_form_covariance,
    closed_form_variance,
    delta_method,
    dropout_labels,
)
from tenfold.systems.activation_uncertainty.analytic.moment_propagation import Moments, relu_moments
from tenfold.systems.activation_uncertainty.experiment.baselines import last_layer_uncertainty
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty

X = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))


def passes_of(model, x, count=20_000):
    torch.manual_seed(0)
    model.train()
    with torch.no_grad():
        return torch.stack([model(x) for _ in range(count)])


def test_covariance_of_the_last_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.25), nn.Linear(10, 3))
    x = X[:2]
    outputs = passes_of(model, x)
    covariance = closed_form_covariance(x, model[1].weight.detach(), 0.25)
    for row in range(2):
        torch.testing.assert_close(covariance[row], torch.cov(outputs[:, row].T), rtol=0.1, atol=0.01)
    variance = closed_form_variance(x, model[1].weight.detach(), 0.25)
    torch.testing.assert_close(variance, covariance.diagonal(dim1=1, dim2=2))


def test_closed_form_is_exact_for_the_last_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)).eval()
    learner = ActivationUncertainty(model, X[:2], target="regression")
    labels = dropout_labels(model, [X], learner.dropout, learner.target, passes=4000)
    torch.testing.assert_close(last_layer_uncertainty(learner, [X]), labels.uncertainty, rtol=0.06, atol=0)


def test_moments_of_relu_are_those_of_a_gaussian():
    mean, variance = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 4.0, 0.25])
    draws = (mean + variance.sqrt() * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))).relu()
    found = relu_moments(Moments(mean, variance))
    torch.testing.assert_close(found.mean, draws.mean(0), rtol=0.02, atol=0.002)
    torch.testing.assert_close(found.variance, draws.var(0), rtol=0.03, atol=0.002)
    certain = relu_moments(Moments(mean, torch.zeros(3)))
    assert torch.equal(certain.mean, mean.relu())
    assert certain.variance.sum() == 0


def test_moments_through_dense_and_convolutional_networks():
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Linear(10, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 128), nn.ReLU(),
        nn.Dropout(0.1), nn.Linear(128, 2),
    )  # fmt: skip
    dense[1].running_mean.normal_()
    dense[1].running_var.uniform_(0.5, 2)
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 8, 3), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(72, 2),
    )  # fmt: skip
    # Units are taken for independent, which neighbours under one filter are not.
    for model, x, rates, least in (
        (dense, X, {"3": 0.1, "6": 0.1}, 0.9),
        (conv, torch.randn(20, 1, 10, 10), {"2": 0.2}, 0.7),
    ):
        model.eval()
        found = MomentPropagation(model, rates).moments(x)
        labels = [
            dropout_labels(model, [x], DropoutController(model, x), Target("regression"), passes=2000,
                           output=lambda o, k=k: o[:, k])
            for k in range(2)
        ]  # fmt: skip
        measured = torch.stack([label.spread for label in labels], 1)
        mean = torch.stack([label.mean[:, 0] for label in labels], 1)
        torch.testing.assert_close(found.mean, mean, rtol=0.05, atol=0.03)
        correlation = torch.corrcoef(torch.stack([found.variance.flatten(), measured.flatten()]))[0, 1]
        assert correlation > least
        assert 0.5 < found.variance.mean() / measured.mean() < 1.5  # the level is why it is calibrated


def test_what_has_no_rule_is_said():
    model = nn.Sequential(nn.Linear(10, 4), nn.Dropout(0.2), nn.Softplus(), nn.Linear(4, 1)).eval()
    with pytest.raises(UserError, match="Softplus: there is no rule"):
        MomentPropagation(model, {"1": 0.2}).moments(X)
    with pytest.raises(UserError, match="no first-order form"):
        delta_method(Target("mutual-information"), torch.randn(3, 4), torch.rand(3, 4))


def test_delta_method_for_small_spreads():
    torch.manual_seed(0)
    logits, root = torch.randn(5, 4).double(), 0.05 * torch.randn(5, 4, 4).double()
    covariance = root @ root.transpose(1, 2)
    draws = logits + (root @ torch.randn(20_000, 5, 4, 1).double())[..., 0]
    best = logits.argmax(-1)
    measured = draws.softmax(-1).std(0)
    torch.testing.assert_close(
        delta_method(Target("class"), logits, covariance), measured.gather(1, best[:, None])[:, 0], rtol=0.05, atol=1e-4
    )
    torch.testing.assert_close(
        delta_method(Target("mean-class"), logits, covariance), measured.mean(1), rtol=0.05, atol=1e-4
    )
    binary = delta_method(Target("binary"), logits[:, 0], covariance[:, :1, 0])
    torch.testing.assert_close(binary, draws[..., 0].sigmoid().std(0), rtol=0.05, atol=1e-4)


def test_calibration_brings_the_level_right():
    raw = torch.rand(100, generator=torch.Generator().manual_seed(0)).double()
    calibration = LinearCalibration.fit(3 * raw + 0.5, raw)
    assert (calibration.scale, calibration.offset) == (pytest.approx(3), pytest.approx(0.5))
    constant = LinearCalibration.fit(raw, torch.ones(100))
    assert constant(torch.ones(2)).tolist() == pytest.approx([float(raw.mean())] * 2)
