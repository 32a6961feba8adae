"""Paper B: the spread of an ensemble of networks, estimated from the activations of one member."""

from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from tenfold.arms import PairedDifference, paired_bootstrap
from tenfold.run import Run
from tenfold.systems.activation_uncertainty.data.task_data import TaskData
from tenfold.systems.activation_uncertainty.ensemble import ensemble_labels
from tenfold.systems.activation_uncertainty.experiment.intervals import r2_difference
from tenfold.systems.activation_uncertainty.experiment.main_training import load_main, make_learner, weights_of
from tenfold.systems.activation_uncertainty.experiment.settings import Config, TaskSettings
from tenfold.workers import Step

SOURCES = ("initialisation", "initialisation and order")
"""What members differ in."""


def _members(config: Config, source: str) -> list[tuple[str, int, int]]:
    """Name of the training, seed of the weights and seed of the order of each member."""
    return [
        (
            f"ensemble/{source.replace(' ', '-')}/member{member}",
            config.seed + 100 + member,
            config.seed if source == "initialisation" else config.seed + member,
        )
        for member in range(config.ensemble)
    ]


def ensemble_trainings(config: Config, task: TaskSettings) -> list[Step]:
    """The trainings of all members."""
    return [
        Step(name, ("train", task.name, seed, order))
        for source in SOURCES
        for name, seed, order in _members(config, source)
    ]


def measure_ensemble(config: Config, task: TaskSettings, data: TaskData, run: Run) -> dict[str, Any]:
    """Paper B: the spread of an ensemble of networks, estimated from the activations of its first member.

    With more sources of randomness (weights alone; weights and order) the spread grows and the mean predicts better.
    """
    found: dict[str, Any] = {"task": task.name, "members": config.ensemble}
    spreads: dict[str, Tensor] = {}
    for source in SOURCES:
        models = [
            load_main(task, data, weights_of(run, name), config.trainer.device) for name, *_ in _members(config, source)
        ]
        learner = make_learner(config, task, data, models[0], config.seed)
        auxiliary, test = (
            ensemble_labels(models, partial(data.numbered, part), learner.target, features=learner.features)
            for part in ("auxiliary", "test")
        )
        fitted = learner.fit(auxiliary, loss="mse_std")
        truth = data.labels("test").double()
        mean = test.mean[:, :-1] if learner.target.classes else test.mean[:, 0]
        errors = [_errors(data, told, truth) for told in (mean, learner.target.prediction(test.output))]
        spreads[source] = test.uncertainty
        found[source] = {
            **asdict(fitted.evaluate(test)),
            "mean_spread": float(test.uncertainty.mean()),
            "error_of_mean": float(errors[0].mean()),
            "error_of_member": float(errors[1].mean()),
            "r2_interval": [*r2_difference(test.uncertainty, fitted.estimate(test)).interval],
            "less_error": _percent(paired_bootstrap(errors[1], errors[0]), float(errors[1].mean())),
        }
    one, both = spreads.values()
    found["more_spread"] = _percent(paired_bootstrap(both, one), float(one.mean()))
    return found


def _percent(difference: PairedDifference, of: float) -> list[float]:
    """A difference and its interval in per cent."""
    scaled = difference.times(100 / of) if of else difference
    return [scaled.mean, *scaled.interval]


def _errors(data: TaskData, prediction: Tensor, truth: Tensor) -> Tensor:
    """``(rows,)`` squared error of values and probabilities, or whether the class is wrong."""
    if data.kind == "classes":
        return (prediction.argmax(-1) != truth).double()
    return (prediction.double() - truth).square()
