"""Paper B: the spread of an ensemble of networks, estimated from the activations of one member."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.run import Run
from tenfold.systems.activation_uncertainty.data.task_data import TaskData
from tenfold.systems.activation_uncertainty.ensemble import ensemble_labels
from tenfold.systems.activation_uncertainty.experiment.main_training import load_main, make_learner, train_main
from tenfold.systems.activation_uncertainty.experiment.settings import Config, TaskSettings


def measure_ensemble(config: Config, task: TaskSettings, data: TaskData, folder: Path, run: Run) -> dict[str, Any]:
    """Paper B: the spread of an ensemble of networks, estimated from the activations of its first member.

    With more sources of randomness (weights alone; weights and order) the spread grows and the mean predicts better.
    """
    found: dict[str, Any] = {"task": task.name, "members": config.ensemble}
    for source in ("initialisation", "initialisation and order"):
        models = []
        for member in range(config.ensemble):
            own = folder / source.replace(" ", "-") / f"member{member}"
            order = config.seed if source == "initialisation" else config.seed + member
            if not (own / "weights.safetensors").exists():
                train_main(config, task, data, config.seed + 100 + member, own, run, order=order)
            models.append(load_main(task, data, own / "weights.safetensors", config.trainer.device))
        learner = make_learner(config, task, data, models[0], config.seed)
        auxiliary, test = (
            ensemble_labels(models, lambda part=part: data.numbered(part), learner.target, features=learner.features)  # type: ignore[misc]
            for part in ("auxiliary", "test")
        )
        measured = learner.fit(auxiliary, loss="mse_std").evaluate(test)
        truth = data.labels("test").double()
        mean = test.mean[:, :-1] if learner.target.classes else test.mean[:, 0]
        single = learner.target.prediction(test.output)
        found[source] = {
            **asdict(measured),
            "mean_spread": float(test.uncertainty.mean()),
            "error_of_mean": _error(data, mean, truth),
            "error_of_member": _error(data, single, truth),
        }
    return found


def _error(data: TaskData, prediction: Tensor, truth: Tensor) -> float:
    """Squared error of values and probabilities, share of wrong classes."""
    if data.kind == "classes":
        return float((prediction.argmax(-1) != truth).double().mean())
    return float((prediction.double() - truth).square().mean())
