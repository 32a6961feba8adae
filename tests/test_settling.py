"""Settling: the number of seeds is fixed before the answer, from seeds that are not in it."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import stats
from systems_for_tests import CASES

from tenfold.arms import claim_of_difference, paired_difference
from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import main
from tenfold.cli.arguments import parse_run
from tenfold.errors import UserError
from tenfold.results import Cost, Results
from tenfold.settings import check_settings
from tenfold.settling import MainClaim, Trial, power_of, seeds_needed, settle


@dataclass
class Training:
    epochs: int = 4


@dataclass
class Config:
    seed: int = 0
    seeds: int = 1
    training: Training = field(default_factory=Training)


class Runner:
    """Runs that draw a difference per seed, a minute each; remembers what was run."""

    def __init__(self, mean=1.0, deviation=1.0):
        self.mean, self.deviation, self.configs, self.done = mean, deviation, {}, {}

    def __call__(self, config, folder):
        if folder.name not in self.done:
            self.configs[folder.name] = config
            self.done[folder.name] = self.results(config)
        return self.done[folder.name]

    def results(self, config):
        seeds = range(config.seed, config.seed + config.seeds)
        ours = [self.mean + self.deviation * np.random.default_rng(seed).standard_normal() for seed in seeds]
        found = paired_difference(ours, np.zeros(len(ours)))
        claim = claim_of_difference("gain", "ours gains", found, baseline="plain", unit="points")
        return Results(
            system="any",
            preset="small",
            seed=config.seed,
            version="0",
            claims=[claim],
            metrics={"plain": {"accuracy": 0.5 + 0.001 * config.training.epochs}},
            cost=Cost(params=1, flops=1, seconds=60.0 * config.seeds, peak_memory_mb=1),
            environment={},
        )


def trial(**changes):
    return Trial(**{"config": Config(), "claims": (MainClaim("gain", 0.5, "much"),), "looked_at": "nothing"} | changes)


@pytest.mark.parametrize("effect, expected", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_for_power_are_those_of_published_tables(effect, expected):
    """Paired t-test, two-sided, alpha .05, power .80: the usual tables (G*Power)."""
    assert seeds_needed(effect, 1.0) == expected
    assert power_of(expected, effect, 1.0) >= 0.8 > power_of(expected - 1, effect, 1.0)


def test_power_is_the_share_of_experiments_that_find_the_effect():
    draws = np.random.default_rng(0).normal(0.8, 1.0, (20_000, 12))
    found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    assert power_of(12, 0.8, 1.0) == pytest.approx(found, abs=0.01)


def test_the_answer_is_students_interval_over_seeds_that_nobody_looked_at(tmp_path):
    run = Runner()
    settled = settle(trial(), tmp_path, run, command="tenfold settle any")
    deviation = np.std(run.done["pilot"].claims[0].by_seed, ddof=1)
    assert len(settled["seeds"]) == max(5, seeds_needed(0.5, deviation))
    assert not set(settled["seeds"]) & set(settled["pilot_seeds"])
    answer = settled["claims"][0]
    expected = stats.ttest_1samp(answer["by_seed"], 0).confidence_interval(0.95)
    assert answer["interval"] == pytest.approx([expected.low, expected.high])
    assert answer["verdict"] == ("holds" if expected.low > 0 else "not settled")
    assert json.loads((tmp_path / "settled.json").read_text()) == settled


def test_the_plan_does_not_see_the_pilots_means_and_stands_when_continued(tmp_path):
    settle(trial(), tmp_path / "a", Runner(mean=0.0))
    settle(trial(), tmp_path / "b", Runner(mean=50.0))
    plans = [json.loads((tmp_path / name / "plan.json").read_text()) for name in "ab"]
    assert plans[0]["seeds"] == plans[1]["seeds"]
    (tmp_path / "b" / "plan.json").write_text(json.dumps(plans[1] | {"seeds": 7}))
    assert len(settle(trial(), tmp_path / "b", Runner(mean=50.0))["seeds"]) == 7


def test_a_budget_decides_and_says_so(tmp_path):
    settled = settle(trial(claims=(MainClaim("gain", 0.05, "much"),)), tmp_path, Runner(), budget=15)
    assert len(settled["seeds"]) == 12  # three of the fifteen minutes went to the pilot
    assert "budget of 15 minutes" in settled["seeds_chosen_by"]
    assert settled["claims"][0]["seeds_for_power_now"] > 12
    with pytest.raises(UserError, match="5 seeds take about 8 minutes in all; the budget is 7"):
        settle(trial(), tmp_path / "short", Runner(), budget=7)


def test_a_baseline_is_at_its_plateau_if_twice_the_epochs_change_less_than_the_effect(tmp_path):
    longer = {"longer": {"training.epochs": 8}, "plateau": ("plain", "accuracy")}
    run = Runner()
    found = settle(trial(**longer, scale=100.0), tmp_path / "a", run)["plateau"]
    assert run.configs["longer"].training.epochs == 8
    assert found["twice_as_long"] - found["at_budget"] == pytest.approx(0.4)
    assert found["reached"]
    assert not settle(trial(**longer, scale=1000.0), tmp_path / "b", Runner())["plateau"]["reached"]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.id)
def test_every_system_says_what_settles_it(system):
    trials = system.trials
    assert trials
    for name, found in trials.items():
        assert name.startswith(system.id)
        check_settings(found.config)
        assert all(main.effect > 0 and main.paper for main in found.claims)
        assert found.looked_at


def test_the_command_settles_and_continues_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """On a real system with its fast settings; stopped between pilot and main run."""
    system = find_system("query-summarizer")
    _, config = parse_run(system, [*CASES[system.id].fast, "--arms", "[both, stage2]"])
    small = Trial(config=config, claims=(MainClaim("augmentation", 50.0, "much"),), looked_at="nothing")
    monkeypatch.setattr(type(system), "trials", {"query-summarizer": small})
    arguments = ["settle", system.id, "--workers", "1", "--quiet", "--out", str(tmp_path / "out")]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("tenfold.settling._make_plan", stop)
        assert main(arguments) == 130
    assert f"--out {tmp_path / 'out'} --resume" in capsys.readouterr().err
    assert main(arguments) == 2 and "--resume" in capsys.readouterr().err
    pilot = (tmp_path / "out/pilot/results.json").stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0
    settled = json.loads((tmp_path / "out/settled.json").read_text())
    assert settled["seeds"] == [2000, 2001, 2002, 2003, 2004] and settled["system"] == system.id
    assert settled["command"] == "tenfold settle query-summarizer --trial query-summarizer"
    assert (tmp_path / "out/pilot/results.json").stat().st_mtime_ns == pilot
    assert settled["claims"][0]["verdict"] in capsys.readouterr().out
