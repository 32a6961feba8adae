import math

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.policies.exit_policy import ExitRecords, PolicyOutcome, record_exits
from tenfold.systems.boosted_exits.policies.metrics import (
    area_under_budgeted_curve,
    area_under_curve,
    calibration_errors,
    exit_accuracies,
    exit_costs,
    hard_share,
)


def test_accuracy_of_each_exit():
    correct = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    assert exit_accuracies(ExitRecords(torch.rand(4, 2), correct, (1.0, 2.0))).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [("multiply-adds", (18, 33)), ("torch", (36, 66)), ("msdnet", (15 + 8, 15 + 8 + 12 + 8))],
)
def test_an_exit_costs_its_stages_and_all_heads_up_to_it(convention: str, expected: tuple[int, int]):
    model = EarlyExitModel([nn.Linear(4, 3), nn.Linear(3, 3)], [nn.Linear(3, 2), nn.Linear(3, 2)])
    assert exit_costs(model, torch.zeros(1, 4), convention) == expected
    assert exit_costs(model, torch.zeros(1, 4), convention) == expected  # nothing is left from the first count
    with pytest.raises(ValueError, match="batch of one"):
        exit_costs(model, torch.zeros(2, 4), convention)


def test_counting_leaves_the_model_as_it_was():
    stages = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.Linear(3, 3)]
    model = EarlyExitModel(stages, [nn.Linear(3, 2), nn.Linear(3, 2)]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exit_costs(model, torch.ones(1, 4))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_area_under_the_anytime_curve():
    assert area_under_curve((1.0, 2.0, 4.0), (0.0, 1.0, 1.0)) == pytest.approx((0.5 + 2.0) / 3)
    assert area_under_curve((7.0,), (0.6,)) == 0.6
    costs = (3.0, 4.0, 9.0)
    assert area_under_curve(costs, torch.full((3,), 0.5)) == pytest.approx(0.5)
    assert area_under_curve([1000 * cost for cost in costs], (0.1, 0.5, 0.6)) == pytest.approx(
        area_under_curve(costs, (0.1, 0.5, 0.6))
    )


def test_costs_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="increase"):
        area_under_curve((2.0, 1.0), (0.5, 0.6))
    with pytest.raises(UserError, match="one number per exit"):
        area_under_curve((1.0, 2.0, 3.0), (0.5, 0.6))


def outcome(cost: float, accuracy: float) -> PolicyOutcome:
    return PolicyOutcome(accuracy, cost, (1.0,), torch.zeros(1, dtype=torch.long))


def test_area_under_the_budgeted_curve_is_that_of_the_best_policy_within_each_budget():
    outcomes = [outcome(3.0, 0.5), outcome(1.0, 0.4), outcome(2.0, 0.8), outcome(9.0, 1.0)]
    assert area_under_budgeted_curve(outcomes, 1.0, 4.0) == pytest.approx((0.4 + 0.8 + 0.8) / 3)
    assert area_under_budgeted_curve(outcomes, 1.5, 2.5) == pytest.approx((0.4 + 0.8) / 2)
    assert area_under_budgeted_curve(outcomes, 5.0, 6.0) == pytest.approx(0.8)
    with pytest.raises(UserError, match=r"at most 0\.5"):
        area_under_budgeted_curve(outcomes, 0.5, 2.0)
    with pytest.raises(UserError, match="must not be empty"):
        area_under_budgeted_curve(outcomes, 2.0, 2.0)


def test_calibration_error_of_each_exit():
    generator = torch.Generator().manual_seed(0)
    ensembles = [3 * torch.randn(200, 5, generator=generator) for _ in range(2)]
    labels = torch.randint(5, (200,), generator=generator)
    errors = calibration_errors(record_exits(ensembles, labels, (1.0, 2.0)))
    for n, z in enumerate(ensembles):
        expected = multiclass_calibration_error(z.softmax(-1), labels, num_classes=5, n_bins=15)
        assert errors[n].item() == pytest.approx(expected.item(), abs=1e-6)


def test_calibration_error_by_hand():
    correct = torch.tensor([[True], [True], [True], [False]])
    records = ExitRecords(torch.full((4, 1), 0.95), correct, (1.0,))
    assert calibration_errors(records).tolist() == pytest.approx([0.2])
    with pytest.raises(UserError, match="probabilities"):
        calibration_errors(ExitRecords(torch.full((4, 1), 2.0), correct, (1.0,)))


def test_hard_samples_are_wrong_or_unsure():
    def logits(probability: float) -> list[float]:
        return [math.log(probability), math.log(1 - probability)]

    labels = torch.zeros(4, dtype=torch.long)
    first = torch.tensor([logits(0.95), logits(0.85), logits(0.3), logits(0.91)])
    second = torch.tensor([logits(0.95), logits(0.95), logits(0.5001), logits(0.99)])
    last = torch.tensor([logits(0.01)] * 4)  # nobody learns from the last one
    assert hard_share([first, second, last], labels).tolist() == [1.0, 0.5, 0.25]
    assert hard_share([first, second, last], labels, easy_probability=0.0).tolist() == [1.0, 0.25, 0.0]
    with pytest.raises(UserError, match="NaN"):
        hard_share([torch.full((4, 2), math.nan)], labels)
