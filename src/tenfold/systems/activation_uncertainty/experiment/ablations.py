"""What the method depends on: dropout rate and place, label passes and loss, auxiliary rows, shift of the inputs."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.run import Run
from tenfold.systems.activation_uncertainty.data.task_data import TaskData
from tenfold.systems.activation_uncertainty.estimator.metrics import quality, r2_score
from tenfold.systems.activation_uncertainty.experiment.main_training import (
    load_main,
    make_learner,
    weights_of,
)
from tenfold.systems.activation_uncertainty.experiment.settings import Config, TaskSettings
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.main_models.build import OWN
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.batches import Batch
from tenfold.systems.activation_uncertainty.network.calling import Inputs

RATES = (0.05, 0.1, 0.3, 0.5)
LABEL_PASSES = (2, 4, 10, 100)
LOSSES = ("gamma", "mse_var", "mse_std")
ROWS = (250, 500, 1000, 2000, 4000, 8000)
ANGLES = (0, 15, 30, 60, 90)


def vary(
    data: TaskData,
    main: nn.Module,
    learner_on: Callable[..., ActivationUncertainty],
    model_at: Callable[[float], nn.Module] | None,
) -> dict[str, Any]:
    """All ablations of one main model.

    Args:
        data: the task's data.
        main: its trained main model.
        learner_on: makes a learner on a model, with changed arguments.
        model_at: a main model trained with another dropout rate, where that is possible.

    Returns:
        ``rates``, ``places``, ``label_passes``, ``rows``, ``shift`` and ``training_rows``: lists of rows by name.
    """
    learner = learner_on(main)
    auxiliary, test = _labels(data, learner)
    found: dict[str, Any] = {
        "places": [_at(data, learner_on(main, places=place), place) for place in ("first", "last")],
        "label_passes": _label_passes(data, learner, test),
        "rows": _rows(learner, auxiliary, test),
        "training_rows": _training_rows(data, learner, len(auxiliary), test),
    }
    if model_at is not None:
        found["rates"] = [_at(data, learner_on(model_at(rate), rate=rate), f"{rate:g}") for rate in RATES]
    if data.kind == "classes" and isinstance(data.example, Tensor) and data.example.ndim == 4:
        found["shift"] = _shift(data, learner.fit(auxiliary))
    return found


def _labels(data: TaskData, learner: ActivationUncertainty) -> tuple[DropoutLabels, DropoutLabels]:
    return learner.label(data.numbered("auxiliary"), seed=11), learner.label(data.numbered("test"), seed=12)


def _at(data: TaskData, learner: ActivationUncertainty, name: str) -> dict[str, Any]:
    """One dropout setting: all layers, and Monte-Carlo dropout with 20 passes."""
    auxiliary, test = _labels(data, learner)
    few = learner.label(data.numbered("test"), passes=20, seed=13)
    again = learner.label(data.numbered("test"), seed=14)
    measured = learner.fit(auxiliary).evaluate(test)
    return {
        "setting": name,
        "r2": measured.r2,
        "spearman": measured.spearman,
        "monte_carlo_20": r2_score(test.uncertainty, few.uncertainty),
        "ceiling": r2_score(test.uncertainty, again.uncertainty),
    }


def _label_passes(data: TaskData, learner: ActivationUncertainty, test: DropoutLabels) -> list[dict[str, Any]]:
    """Labels of few passes with each loss: which level is learnt, and how well."""
    rows = []
    for passes in LABEL_PASSES:
        auxiliary = learner.label(data.numbered("auxiliary"), passes=passes, seed=15)
        row: dict[str, Any] = {"passes": passes}
        for loss in LOSSES:
            measured = learner.fit(auxiliary, loss=loss).evaluate(test)  # type: ignore[arg-type]
            row |= {f"{loss} r2": measured.r2, f"{loss} ratio": measured.ratio}
        rows.append(row)
    return rows


def _rows(learner: ActivationUncertainty, auxiliary: DropoutLabels, test: DropoutLabels) -> list[dict[str, Any]]:
    counts = [*(count for count in ROWS if count < len(auxiliary)), len(auxiliary)]
    return [{"rows": count, "r2": learner.fit(auxiliary.subset(slice(0, count))).evaluate(test).r2} for count in counts]


def _training_rows(
    data: TaskData, learner: ActivationUncertainty, rows: int, test: DropoutLabels
) -> list[dict[str, Any]]:
    """The estimator on rows that trained the main model, against as many held-out rows."""

    def some() -> Iterator[tuple[Inputs, Tensor]]:
        given = 0
        for inputs, ids in data.numbered("train"):
            if given < rows:
                yield Batch(inputs, ids)
            given += len(ids)

    trained = learner.label(some(), seed=16)
    held = learner.label(data.numbered("auxiliary"), seed=11)
    count = min(len(trained), len(held))
    return [
        {
            "fitted on": name,
            "mean_uncertainty": float(labels.uncertainty.mean()),
            "r2": (measured := learner.fit(labels.subset(slice(0, count))).evaluate(test)).r2,
            "ratio": measured.ratio,
        }
        for name, labels in (("training rows", trained), ("held-out rows", held))
    ]


def _shift(data: TaskData, learner: ActivationUncertainty) -> list[dict[str, Any]]:
    """Rotated images: how the estimate decays, and how many are reported as far from the data."""
    from torchvision.transforms.functional import rotate

    served, rows = learner.serve(), []
    for angle in ANGLES:
        turned = [Batch(rotate(inputs, angle) if angle else inputs, ids) for inputs, ids in data.numbered("test")]
        labels = learner.label(turned, seed=17)
        scores = [served.score(inputs) for inputs, _ in turned]
        measured = quality(labels.uncertainty, torch.cat([score.uncertainty for score in scores]))
        rows.append(
            {
                "degrees": angle,
                "r2": measured.r2,
                "spearman": measured.spearman,
                "ratio": measured.ratio,
                "outside": float(torch.cat([score.outside for score in scores]).mean()),
                "far": float(torch.cat([score.far for score in scores]).float().mean()),
            }
        )
    return rows


def vary_settings(config: Config, task: TaskSettings, data: TaskData, run: Run) -> dict[str, Any]:
    """What the method depends on, on the first seed; main models at other rates are trained already."""

    def model_at(rate: float) -> nn.Module:
        return load_main(task.at_rate(rate), data, weights_of(run, f"rates/{rate:g}"), config.trainer.device)

    main = load_main(task, data, weights_of(run, f"main/{task.name}/seed{config.seed}"), config.trainer.device)

    def learner_on(model: nn.Module, **changes: Any) -> ActivationUncertainty:
        return make_learner(config, task, data, model, config.seed, **changes)

    return vary(data, main, learner_on, model_at if task.model.name in OWN else None)
