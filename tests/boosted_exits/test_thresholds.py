import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.method import confidence
from tenfold.systems.boosted_exits.policies.control_risk import accept_policies, control_risk, hoeffding_bentkus
from tenfold.systems.boosted_exits.policies.exit_policy import (
    ExitPolicy,
    ExitRecords,
    assign_exits,
    evaluate_policy,
    record_exits,
)
from tenfold.systems.boosted_exits.policies.geometric_family import (
    OFFICIAL_Q,
    Ranking,
    exit_distribution,
    geometric_family,
)
from tenfold.systems.boosted_exits.policies.search_front import _policies_between, search_front
from tenfold.systems.boosted_exits.policies.solve_thresholds import best_within, flat_curve, solve_thresholds

NOBODY, EVERYBODY = 1e8, -1e8


@st.composite
def records_of(draw: st.DrawFn, exits: tuple[int, int] = (1, 4), samples: tuple[int, int] = (1, 24)) -> ExitRecords:
    """Random records; confidences on a coarse grid, so that many tie."""
    exit_count = draw(st.integers(*exits))
    sample_count = draw(st.integers(*samples))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    shape = (sample_count, exit_count)
    confidences = torch.randint(1, levels + 1, shape, generator=generator) / levels
    correct = torch.rand(shape, generator=generator) < confidences
    steps = torch.rand(exit_count, generator=generator).double() + 0.1
    return ExitRecords(confidences, correct, tuple(steps.cumsum(0).tolist()))


def simulated_records(samples: int, exits: int, seed: int) -> ExitRecords:
    """Confidences that tell right from wrong, deeper exits better than shallow ones."""
    generator = torch.Generator().manual_seed(seed)
    hardness = torch.rand(samples, 1, generator=generator)
    skill = torch.linspace(0.5, 1.0, exits)
    noise = 0.1 * torch.randn(samples, exits, generator=generator)
    margin = skill - hardness + noise
    correct = torch.rand(samples, exits, generator=generator) < torch.sigmoid(6 * margin + 1)
    return ExitRecords(torch.sigmoid(6 * margin), correct, tuple(float(n + 1) for n in range(exits)))


@pytest.fixture
def four_samples() -> ExitRecords:
    confidences = torch.tensor([[0.9, 0.9, 0.9], [0.8, 0.6, 0.7], [0.6, 0.8, 0.5], [0.5, 0.5, 0.6]])
    correct = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.bool)
    return ExitRecords(confidences, correct, (1.0, 2.0, 4.0))


# --- records and simulation ---


def test_records_hold_the_confidence_and_rightness_of_the_ensembles():
    ensembles = [torch.randn(6, 3, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    records = record_exits(ensembles, labels, torch.tensor([10, 25]))
    for n, z in enumerate(ensembles):
        assert torch.equal(records.confidences[:, n], confidence(z))
        assert torch.equal(records.correct[:, n], z.argmax(1) == labels)
    assert records.costs == (10.0, 25.0)


def test_policy_by_hand(four_samples: ExitRecords):
    outcome = evaluate_policy(four_samples, (0.8, 0.7, EVERYBODY))
    assert outcome.exits.tolist() == [0, 0, 1, 2]
    assert outcome.exit_shares == (0.5, 0.25, 0.25)
    assert outcome.cost == (1 + 1 + 2 + 4) / 4
    assert outcome.accuracy == 2 / 4  # the first and the last sample


@settings(derandomize=True)
@given(records_of(), st.lists(st.sampled_from([EVERYBODY, 0.2, 0.4, 0.5, 0.8, 1.0, NOBODY]), min_size=3, max_size=3))
def test_exits_equal_a_loop_over_samples(records: ExitRecords, levels: list[float]):
    thresholds = (*levels[: records.exits - 1], EVERYBODY)

    def exit_of(sample: Tensor) -> int:
        return next(n for n, threshold in enumerate(thresholds) if sample[n] >= threshold)

    expected = [exit_of(sample) for sample in records.confidences]
    assert assign_exits(records.confidences, thresholds).tolist() == expected


def test_a_policy_survives_json(four_samples: ExitRecords):
    policy = solve_thresholds(four_samples, budget=2.0)
    assert ExitPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": None}, "numbers"),
        ({"thresholds": ["high"]}, "numbers"),
        ({"thresholds": [math.nan] * 3}, "numbers"),
        ({"thresholds": [0.5]}, "one threshold and one share per exit"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_broken_policy_file_is_refused(four_samples: ExitRecords, change: dict, message: str):
    values = solve_thresholds(four_samples).to_dict() | change
    with pytest.raises(UserError, match=message):
        ExitPolicy.from_dict(values)


@pytest.mark.parametrize(
    ("confidences", "correct", "costs", "message"),
    [
        (torch.tensor([[0.5, math.nan]]), torch.ones(1, 2, dtype=torch.bool), (1.0, 2.0), "NaN"),
        (torch.rand(0, 2), torch.ones(0, 2, dtype=torch.bool), (1.0, 2.0), "at least one"),
        (torch.rand(3, 2), torch.ones(2, 3, dtype=torch.bool), (1.0, 2.0), "like confidences"),
        (torch.rand(3, 2), torch.ones(3, 2), (1.0, 2.0), "booleans"),
        (torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool), (1.0,), "one number per exit"),
        (torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool), (2.0, 2.0), "increase"),
        (torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool), (1.0, math.nan), "increase"),
        (torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool), (0.0, 1.0), "positive"),
    ],
)
def test_broken_records_are_refused(confidences: Tensor, correct: Tensor, costs: tuple[float, ...], message: str):
    with pytest.raises(UserError, match=message):
        ExitRecords(confidences, correct, costs)


@pytest.mark.parametrize(
    ("ensembles", "labels", "message"),
    [
        ([torch.zeros(2, 3), torch.full((2, 3), math.nan)], torch.zeros(2, dtype=torch.long), "NaN"),
        ([torch.zeros(2, 3)] * 2, torch.tensor([0.0, math.nan]), "class indices"),
        ([torch.zeros(2, 3)] * 2, torch.tensor([0, 3]), "0..2"),
        ([torch.zeros(2, 3)] * 2, torch.tensor([0, 1, 2]), "one per sample"),
        ([torch.zeros(2, 3), torch.zeros(3, 3)], torch.tensor([0, 1]), "one shape"),
        ([], torch.tensor([0, 1]), "one shape"),
    ],
)
def test_broken_ensembles_are_refused(ensembles: list[Tensor], labels: Tensor, message: str):
    with pytest.raises(UserError, match=message):
        record_exits(ensembles, labels, (1.0, 2.0))


# --- the geometric family ---


def test_geometric_thresholds_by_hand():
    # Uniform over 3 exits and 6 samples: two leave at each.
    confidences = torch.tensor(
        [[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.3, 0.7, 0.5], [0.2, 0.6, 0.5], [0.1, 0.5, 0.5], [0.4, 0.2, 0.5]]
    )
    records = ExitRecords(confidences, torch.ones(6, 3, dtype=torch.bool), (1.0, 2.0, 3.0))
    (policy,) = geometric_family(records, [1.0])
    assert policy.thresholds == (pytest.approx(0.8), pytest.approx(0.6), EVERYBODY)  # 0.9 at exit 2 has left before
    assert policy.exit_shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert policy.cost == pytest.approx(2.0)


@settings(deadline=None, derandomize=True)
@given(records_of(), st.sampled_from(OFFICIAL_Q))
def test_geometric_thresholds_equal_a_loop_over_samples(records: ExitRecords, q: float):
    shares = exit_distribution(q, records.exits)
    left: set[int] = set()
    expected = []
    for n in range(records.exits - 1):
        aimed, seen, threshold = math.floor(records.samples * shares[n]), 0, NOBODY
        column = records.confidences[:, n].tolist()
        for sample in sorted(range(records.samples), key=lambda i: -column[i]):
            seen += sample not in left
            if sample not in left and seen == aimed:
                threshold = column[sample]
                break
        left |= {sample for sample in range(records.samples) if column[sample] >= threshold}
        expected.append(threshold)
    (policy,) = geometric_family(records, [q])
    assert policy.thresholds == (*expected, EVERYBODY)


def test_official_family_and_its_shares():
    assert OFFICIAL_Q[0] == 0.05
    assert OFFICIAL_Q[-1] == 1.95
    assert exit_distribution(0.5, 3).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert exit_distribution(0.5, 3).dtype == torch.float32
    family = geometric_family(simulated_records(2000, 4, seed=0))
    assert len(family) == 39
    costs = [policy.cost for policy in family]
    assert costs == sorted(costs)


def test_small_q_leaves_everyone_at_the_first_exit(four_samples: ExitRecords):
    (policy,) = geometric_family(four_samples, [1e-9])
    assert policy.exit_shares == (1.0, 0.0, 0.0)
    assert policy.cost == four_samples.costs[0]


def test_large_q_runs_everyone_to_the_end(four_samples: ExitRecords):
    (policy,) = geometric_family(four_samples, [1e9])
    assert policy.thresholds == (NOBODY, NOBODY, EVERYBODY)  # k = 0
    assert policy.cost == four_samples.costs[-1]
    assert policy.accuracy == 1.0


def test_ties_leave_together_and_the_shares_say_so():
    confidences = torch.tensor([[0.5, 0.1, 0.1], [0.5, 0.2, 0.1], [0.5, 0.3, 0.1], [0.4, 0.9, 0.1]])
    records = ExitRecords(confidences, torch.ones(4, 3, dtype=torch.bool), (1.0, 2.0, 3.0))
    (policy,) = geometric_family(records, [1.0])  # aims at one sample for each of exits 1 and 2
    assert policy.thresholds == (0.5, pytest.approx(0.9), EVERYBODY)
    assert policy.exit_shares == (0.75, 0.25, 0.0)


def test_nobody_leaves_where_fewer_than_k_are_left():
    confidences = torch.full((8, 3), 0.5)
    confidences[7, 0] = 0.4
    records = ExitRecords(confidences, torch.ones(8, 3, dtype=torch.bool), (1.0, 2.0, 3.0))
    (policy,) = geometric_family(records, [1.36])  # aims at 1 and 2 samples; seven tie at exit 1, one is left
    assert policy.thresholds == (0.5, NOBODY, EVERYBODY)
    assert policy.exit_shares == (7 / 8, 0.0, 1 / 8)


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf])
def test_ratios_that_are_none_are_refused(four_samples: ExitRecords, q: float):
    with pytest.raises(UserError, match="q must be a positive number"):
        geometric_family(four_samples, [q])


def test_flat_curve_repeats_what_does_not_improve_validation():
    validation = [0.5, 0.7, 0.7, 0.6, 0.8]
    assert flat_curve(validation, [0.4, 0.6, 0.9, 0.8, 0.7]) == [0.4, 0.6, 0.6, 0.6, 0.7]


# --- budgets ---


@pytest.mark.parametrize("method", ["search", "geometric"])
def test_budgets_at_the_ends(four_samples: ExitRecords, method: str):
    cheapest = solve_thresholds(four_samples, method, budget=1.0)
    assert (cheapest.cost, cheapest.accuracy, cheapest.method) == (1.0, 0.25, method)
    assert solve_thresholds(four_samples, method, budget=1e9).accuracy == 1.0
    with pytest.raises(UserError, match="smallest possible one is 1"):
        solve_thresholds(four_samples, method, budget=0.99)
    with pytest.raises(UserError, match="smallest possible"):
        solve_thresholds(four_samples, method, budget=math.nan)


def test_wrong_requests_are_refused(four_samples: ExitRecords):
    with pytest.raises(UserError, match="needs a budget"):
        solve_thresholds(four_samples, "geometric")
    with pytest.raises(UserError, match="not a budget"):
        solve_thresholds(four_samples, "risk", budget=2.0)
    with pytest.raises(UserError, match="method must be"):
        solve_thresholds(four_samples, "magic")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epsilon"):
        solve_thresholds(four_samples, "risk", epsilon=0.0)
    with pytest.raises(UserError, match="delta"):
        solve_thresholds(four_samples, "risk", delta=1.0)


def test_geometric_budget_is_used_up():
    records = simulated_records(4000, 5, seed=1)
    for budget in (1.3, 2.0, 3.1, 4.6):
        policy = solve_thresholds(records, "geometric", budget=budget)
        assert 0.98 * budget < policy.cost <= budget


@settings(deadline=None, max_examples=40, derandomize=True)
@given(records_of())
def test_search_is_monotone_within_budget_and_never_below_geometric(records: ExitRecords):
    front = search_front(records)
    best = -1.0
    for budget in torch.linspace(records.costs[0], records.costs[-1], 9, dtype=torch.float64).tolist():
        searched = best_within(front, budget)
        geometric = solve_thresholds(records, "geometric", budget=budget)
        assert searched.cost <= budget
        assert geometric.cost <= budget
        assert searched.accuracy >= max(best, geometric.accuracy)
        best = searched.accuracy
    for policy in geometric_family(records):
        assert best_within(front, policy.cost).accuracy >= policy.accuracy
    for n, cost in enumerate(records.costs):
        assert best_within(front, cost).accuracy >= float(records.correct[:, n].double().mean()) - 1e-12


@settings(deadline=None, max_examples=40, derandomize=True)
@given(records_of())
def test_the_front_reports_what_its_thresholds_do(records: ExitRecords):
    front = search_front(records)
    assert front[0].cost == pytest.approx(records.costs[0])
    for policy in front:
        outcome = evaluate_policy(records, policy.thresholds)
        assert (policy.accuracy, policy.cost) == (outcome.accuracy, outcome.cost)
        assert policy.exit_shares == outcome.exit_shares
    for cheap, costly in itertools.pairwise(front):
        assert cheap.cost < costly.cost
        assert cheap.accuracy < costly.accuracy


def all_policies(records: ExitRecords) -> list[tuple[float, float]]:
    """Cost and accuracy of every policy there is."""
    levels = [[NOBODY, *records.confidences[:, n].unique().tolist()] for n in range(records.exits - 1)]
    outcomes = [evaluate_policy(records, (*chosen, EVERYBODY)) for chosen in itertools.product(*levels)]
    return [(outcome.cost, outcome.accuracy) for outcome in outcomes]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(records_of(exits=(2, 2), samples=(1, 12)))
def test_with_two_exits_the_search_is_exact(records: ExitRecords):
    front = search_front(records)
    for cost, accuracy in all_policies(records):
        assert best_within(front, cost + 1e-9).accuracy >= accuracy


@settings(deadline=None, max_examples=40, derandomize=True)
@given(records_of(exits=(3, 3), samples=(1, 8)))
def test_with_three_exits_no_single_threshold_improves_a_supported_policy(records: ExitRecords):
    # Coordinate ascent promises this much; it finds the best of all policies nearly always (next test).
    front = search_front(records)
    for price in (0.05, 0.2, 0.5, 1.0):
        best = max(front, key=lambda policy: policy.accuracy - price * policy.cost)
        for n in range(records.exits - 1):
            for threshold in (NOBODY, *records.confidences[:, n].tolist()):
                changed = list(best.thresholds)
                changed[n] = threshold
                outcome = evaluate_policy(records, changed)
                assert outcome.accuracy - price * outcome.cost <= best.accuracy - price * best.cost + 1e-9


@settings(deadline=None, max_examples=40, derandomize=True)
@given(records_of(exits=(2, 4)), st.lists(st.sampled_from([EVERYBODY, 0.3, 0.6, 1.0, NOBODY]), min_size=6, max_size=6))
def test_policies_on_the_way_from_one_to_another_are_priced_right(records: ExitRecords, levels: list[float]):
    start, end = ((*levels[part : part + records.exits - 1], EVERYBODY) for part in (0, 3))
    for accuracy, cost, *thresholds in _policies_between(Ranking(records), start, end).tolist():
        outcome = evaluate_policy(records, thresholds)
        assert (accuracy, cost) == pytest.approx((outcome.accuracy, outcome.cost))


def test_the_front_leaves_no_gaps_that_a_budget_falls_into():
    records = simulated_records(2000, 4, seed=2)
    front = search_front(records)
    for cheap, costly in itertools.pairwise(front):
        near = costly.cost - cheap.cost < 0.02 * (front[-1].cost - front[0].cost)
        assert near or costly.accuracy - cheap.accuracy <= 3 / records.samples  # nothing to gain in between


def test_with_three_exits_the_search_is_nearly_always_optimal():
    optimal, cases = 0, 0
    for seed in range(30):
        records = simulated_records(8, 3, seed=seed)
        front, everything = search_front(records), all_policies(records)
        for price in (0.02, 0.1, 0.3):
            found = max(policy.accuracy - price * policy.cost for policy in front)
            possible = max(accuracy - price * cost for cost, accuracy in everything)
            cases += 1
            optimal += found >= possible - 1e-9
    assert optimal >= 0.97 * cases


def test_search_beats_geometric_where_the_middle_exit_is_useless():
    # Exit 2 is no better than exit 1 and dearer: geometric thresholds still send samples there.
    records = simulated_records(2000, 3, seed=3)
    correct = records.correct.clone()
    correct[:, 1] = correct[:, 0]
    records = ExitRecords(records.confidences, correct, (1.0, 5.0, 6.0))
    searched = solve_thresholds(records, budget=3.0)
    geometric = solve_thresholds(records, "geometric", budget=3.0)
    assert searched.accuracy > geometric.accuracy + 0.02


# --- risk control ---


def test_p_value_by_hand():
    assert hoeffding_bentkus(0, 10, 0.1) == pytest.approx(0.9**10)  # Hoeffding's term; Bentkus' is e times that
    assert hoeffding_bentkus(1, 10, 0.1) == 1.0
    bentkus = math.e * sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(3))
    hoeffding = math.exp(-100 * (0.02 * math.log(0.2) + 0.98 * math.log(0.98 / 0.9)))
    assert bentkus < hoeffding
    assert hoeffding_bentkus(2, 100, 0.1) == pytest.approx(bentkus)


def test_a_policy_passes_where_its_p_value_is_at_most_delta():
    records = ExitRecords(torch.ones(10, 1), torch.ones(10, 1, dtype=torch.bool), (1.0,))
    harmless = ExitPolicy((EVERYBODY,), "search", 1.0, 1.0, (1.0,))  # p-value 0.9^10 = 0.349 for epsilon 0.1
    assert not accept_policies([harmless], records, epsilon=0.1, delta=0.34)
    assert accept_policies([harmless], records, epsilon=0.1, delta=0.35)


def test_testing_stops_at_the_first_failure():
    confidences = torch.linspace(0, 1, 1000)[:, None].repeat(1, 2)
    correct = torch.ones(1000, 2, dtype=torch.bool)
    correct[:, 0] = confidences[:, 0] >= 0.5  # exit 1 loses exactly the lower half
    records = ExitRecords(confidences, correct, (1.0, 2.0))
    sequence = [
        ExitPolicy((threshold, EVERYBODY), "search", 0.0, 0.0, (0.0, 0.0)) for threshold in (0.9, 0.5, 0.3, 0.8)
    ]
    accepted = accept_policies(sequence, records, epsilon=0.05, delta=0.05)
    assert list(accepted) == sequence[:2]  # 0.8 comes after a failure


def test_risk_stays_below_epsilon_but_for_a_share_delta_of_draws():
    epsilon, delta, draws = 0.05, 0.1, 200
    population = simulated_records(20_000, 3, seed=4)
    sequence = search_front(simulated_records(400, 3, seed=5))[::-1]

    def lost(policy: ExitPolicy, records: ExitRecords) -> float:
        exits = assign_exits(records.confidences, policy.thresholds)
        right = records.correct.gather(1, exits[:, None]).squeeze(1)
        return float((records.correct[:, -1] & ~right).double().mean())

    true_risks = {policy: lost(policy, population) for policy in sequence}
    assert min(true_risks.values()) < epsilon < max(true_risks.values())
    generator = torch.Generator().manual_seed(6)
    violations = savings = 0.0
    for _ in range(draws):
        drawn = population.subset(torch.randint(population.samples, (500,), generator=generator))
        accepted = accept_policies(sequence, drawn, epsilon=epsilon, delta=delta)
        violations += bool(accepted) and true_risks[accepted[-1]] > epsilon
        savings += bool(accepted) and accepted[-1].cost < sequence[0].cost
    assert violations / draws <= delta
    assert savings / draws > 0.9  # not by refusing everything


def test_risk_control_saves_cost_and_says_what_it_tested_on():
    records = simulated_records(3000, 3, seed=7)
    policy = control_risk(records, epsilon=0.05, delta=0.1, seed=1)
    assert policy.method == "risk"
    assert policy.cost < records.costs[-1]
    halves = torch.randperm(3000, generator=torch.Generator().manual_seed(1)).tensor_split(2)
    outcome = evaluate_policy(records.subset(halves[1]), policy.thresholds)
    assert (policy.accuracy, policy.cost) == (outcome.accuracy, outcome.cost)
    assert policy == solve_thresholds(records, "risk", epsilon=0.05, delta=0.1, seed=1)


def test_risk_control_without_enough_samples_runs_to_the_end(four_samples: ExitRecords):
    policy = solve_thresholds(four_samples, "risk", epsilon=0.01, delta=0.05)
    assert policy.thresholds == (NOBODY, NOBODY, EVERYBODY)
    with pytest.raises(UserError, match="at least 2"):
        control_risk(four_samples.subset(torch.tensor([0])))
