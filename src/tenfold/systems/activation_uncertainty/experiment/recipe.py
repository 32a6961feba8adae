"""Activation uncertainty: the experiment, read from top to bottom.

For each task and seed: train the main model, label held-out and test rows by passes with dropout, fit the estimator and
all that it is compared with, measure. Then the papers' further claims (joint training, ensembles), what the method
depends on (ablations), and the delivery of the first seed's model with its estimator.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.export import save_model
from tenfold.parallel import rank
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.activation_uncertainty.data.task_data import TaskData, load_task
from tenfold.systems.activation_uncertainty.estimator.metrics import (
    level_deciles,
    overlap_at,
    retention_area,
    retention_curve,
)
from tenfold.systems.activation_uncertainty.experiment.ablations import vary_settings
from tenfold.systems.activation_uncertainty.experiment.baselines import Comparison
from tenfold.systems.activation_uncertainty.experiment.comparison import claims_of, metrics_of
from tenfold.systems.activation_uncertainty.experiment.ensembles import measure_ensemble
from tenfold.systems.activation_uncertainty.experiment.joint_training import train_jointly
from tenfold.systems.activation_uncertainty.experiment.main_training import (
    labelled,
    load_main,
    make_learner,
    make_model,
    train_main,
    weights_of,
)
from tenfold.systems.activation_uncertainty.experiment.plots import plots_of
from tenfold.systems.activation_uncertainty.experiment.result_tables import tables_of
from tenfold.systems.activation_uncertainty.experiment.settings import PRESETS, TASKS, Config, TaskSettings, tasks_of
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.labels.prefix_cache import PrefixCache
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.calling import call
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel

__all__ = ["PRESETS", "TASKS", "Config", "deliver", "make_learner", "make_model", "measure", "run", "train_main"]


def run(config: Config, run: Run) -> Results:
    """Measure all tasks over all seeds, then deliver the first task's first model with its estimator.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    tasks = tasks_of(config)
    loaded = {task.name: load_task(**asdict(task.data)) for task in tasks}
    for task in tasks:  # what cannot be built or has no dropout fails now, not after hours
        make_learner(config, task, loaded[task.name], make_model(task, loaded[task.name]), config.seed)
    seeds = range(config.seed, config.seed + config.seeds)
    outcomes: dict[str, list[dict[str, Any]]] = {task.name: [] for task in tasks}
    for task in tasks:
        data = loaded[task.name]
        for seed in seeds:
            name = f"{task.name}/seed{seed}"
            run.step(f"main/{name}", lambda folder: train_main(config, task, data, seed, folder, run))  # noqa: B023
            weights = weights_of(run, f"main/{name}")
            outcomes[task.name].append(
                run.step(f"measure/{name}", lambda _: measure(config, task, data, seed, weights))  # noqa: B023
            )
    first, data = tasks[0], loaded[tasks[0].name]
    extra: dict[str, Any] = {}
    if config.joint:
        extra["joint"] = run.step("joint", lambda folder: train_jointly(config, first, data, folder, run))
    if config.ensemble:
        task = next((task for task in tasks if task.data.name.startswith(("ratings", "movielens"))), first)
        extra["ensemble"] = run.step(
            "ensemble", lambda folder: measure_ensemble(config, task, loaded[task.name], folder, run)
        )
    if config.ablations:
        extra["ablations"] = run.step("ablations", lambda folder: vary_settings(config, first, data, folder, run))
    delivered = run.step("delivery", lambda _: deliver(config, first, data, outcomes[first.name][0]["chosen"], run))
    return Results(
        system="activation-uncertainty",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        claims=claims_of(outcomes, extra, delivered),
        metrics=metrics_of(outcomes, extra),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["multiply_adds"] + delivered["estimator_multiply_adds"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=", ".join(loaded),
            train_rows=data.sizes["train"],
            auxiliary_rows=data.sizes["auxiliary"],
            test_rows=data.sizes["test"],
        ),
        plots=plots_of(outcomes, extra),
        tables=tables_of(outcomes, extra, delivered),
        notes=[
            *dict.fromkeys(note for name in loaded for note in loaded[name].notes),
            *dict.fromkeys(note for runs in outcomes.values() for note in runs[0]["notes"]),
            "Labels of the estimator, labels of the test and the passes of the Monte-Carlo rows are independent of "
            "each other. Layers and epochs of the estimators are chosen on a fifth of the auxiliary rows; test rows "
            "are only measured.",
            "Dropout uncertainty is not error: the retention plots show how the two go together, beside Monte-Carlo "
            "dropout and the largest probability.",
            "The method sections of both papers were not available: feature forms, sizes of the estimator and the "
            "multi-class uncertainty are reconstructed (see the system's README).",
        ],
    )


def measure(config: Config, task: TaskSettings, data: TaskData, seed: int, weights: Path) -> dict[str, Any]:
    """All rows of the comparison for one trained main model.

    Returns:
        ``rows`` (by name, see ``Comparison``), ``ceiling``, layers
        that were tried and chosen, areas under the retention curve, deciles, costs, the mean uncertainty of training
        and held-out rows, and the number of main predictions that the tapping changed.
    """
    model = load_main(task, data, weights, config.trainer.device)
    learner = make_learner(config, task, data, model, seed)
    untapped = [call(model, inputs).detach() for inputs, _ in data.numbered("test")]
    auxiliary, test, again = labelled(config, data, learner, seed)

    def parts(part: Any) -> Any:
        return lambda: data.numbered(part)

    options: dict[str, Any] = {"loss": config.estimator.loss, "hidden": tuple(config.estimator.hidden)}
    table = Comparison(learner, auxiliary, test, options)
    selection = table.activations(config.estimator.tolerance)
    table.on_off(parts("auxiliary"), parts("test"))
    table.outputs()
    table.embeddings(parts("auxiliary"), parts("test"))
    notes = table.analytic(parts("auxiliary"), parts("test"))
    table.monte_carlo(parts("test"), seed=1000 * seed + 100)
    table.equivalents()

    fitted = table.fit_columns(learner.columns(learner.features.blocks))
    served = UncertainModel(model, learner.features, fitted.estimator, learner.target)
    predictions, estimates = _served(served, data)
    estimates_all = torch.cat(estimates)
    changed = sum(int((a != b).sum()) for a, b in zip(untapped, predictions, strict=True))
    trained = learner.label(_first(data.numbered("train"), len(auxiliary)), seed=1000 * seed + 3)
    errors = main_errors(data, test)
    twenty = "Monte-Carlo dropout, T = 20"
    methods: dict[str, Tensor] = {"activations, one pass": estimates_all, twenty: table.estimates[twenty]}
    if learner.target.classes:
        methods["largest probability"] = 1 - test.output.softmax(-1).amax(-1)
    k = max(len(test) // 10, 1)
    return {
        "rows": table.rows,
        "ceiling": table.ceiling(again),
        "notes": [f"{task.name}: {note}" for note in notes],
        "layers": [
            {
                "names": list(s.names),
                "kind": s.kind,
                "features": s.features,
                "multiply_adds": s.multiply_adds,
                "r2": s.r2,
            }
            for s in selection.scores
        ],
        "chosen": list(selection.chosen.names),
        "bucket_aucs": table.buckets(),
        "deciles": level_deciles(test.uncertainty, estimates_all),
        "retention": {name: retention_curve(errors, values) for name, values in methods.items()},
        "retention_area": {name: retention_area(errors, values) for name, values in methods.items()},
        "overlap": overlap_at(k, estimates_all, table.estimates[twenty]),
        "overlap_at": k,
        "changed_predictions": changed,
        "mean_uncertainty": {
            "training rows": float(trained.uncertainty.mean()),
            "held-out rows": float(auxiliary.uncertainty.mean()),
        },
        "error": float(errors.double().mean()),
        "costs": costs_of(learner, data, selection.chosen.multiply_adds),
    }


def _served(served: nn.Module, data: TaskData) -> tuple[list[Tensor], list[Tensor]]:
    """Predictions and uncertainties of the test rows, batch by batch."""
    predictions, uncertainties = [], []
    with torch.no_grad():
        for inputs, _ in data.numbered("test"):
            prediction, uncertainty = call(served, inputs)
            predictions.append(prediction)
            uncertainties.append(uncertainty)
    return predictions, uncertainties


def _first(batches: Iterable[Any], rows: int) -> Iterable[Any]:
    """Batches until there are so many rows."""
    given = 0
    for inputs, ids in batches:
        if given >= rows:
            return
        yield inputs, ids
        given += len(ids)


def main_errors(data: TaskData, test: DropoutLabels) -> Tensor:
    """The main model's error on each test row: wrong class or squared."""
    truth = data.labels("test")
    if data.kind == "classes":
        return (test.output.argmax(-1) != truth).float()
    if data.kind == "binary":
        return ((test.output > 0) != (truth > 0.5)).float()
    return (test.output - truth).square()


def costs_of(learner: ActivationUncertainty, data: TaskData, chosen: int) -> dict[str, float]:
    """Multiply-adds of one row: the main model, the part after its first dropout, all layers' and chosen estimator."""
    model, batch = learner.model, next(iter(data.numbered("test", 1)))[0]
    whole = count_flops(lambda: call(model, batch), convention="multiply-adds", modules=[model])
    cache = PrefixCache(learner.dropout, batch)
    with torch.no_grad(), cache.record():
        call(model, batch)
    with cache.replay(1):
        suffix = count_flops(lambda: call(model, batch), convention="multiply-adds", modules=[model])
    return {"main": whole, "suffix": suffix, "chosen_estimator": chosen}


def deliver(config: Config, task: TaskSettings, data: TaskData, chosen: Sequence[str], run: Run) -> dict[str, Any]:
    """Write the first seed's main model and its estimator on the chosen layers into the run's folder."""
    model = load_main(task, data, weights_of(run, f"main/{task.name}/seed{config.seed}"), config.trainer.device)
    learner = make_learner(config, task, data, model, config.seed)
    auxiliary, test, _ = labelled(config, data, learner, config.seed)
    learner.fit(auxiliary, loss=config.estimator.loss, hidden=tuple(config.estimator.hidden), layers=chosen)
    measured = learner.evaluate(test)
    estimator = learner.result.estimator
    costs = costs_of(learner, data, estimator.multiply_adds)
    if rank() == 0:
        save_model(
            run.folder,
            model,
            system="activation-uncertainty",
            builder=task.model.name,
            arguments={
                **data.model_facts,
                "rate": task.dropout.rate,
                "arguments": task.model.arguments,
                "factory": task.model.factory,
            },
            extra={
                "kind": data.kind,
                "classes": list(data.classes),
                "normalization": data.normalization,
                "example": _example_facts(data),
            },
        )
        learner.save(run.folder, metrics=dict(asdict(measured).items()))
    return {
        "params": count_parameters(model) + count_parameters(estimator),
        "multiply_adds": costs["main"],
        "estimator_multiply_adds": estimator.multiply_adds,
        "layers": list(learner.serve().features.blocks),
        **asdict(measured),
    }


def _example_facts(data: TaskData) -> dict[str, Any]:
    """Shapes and types of one row of inputs by name, from which the export makes blank ones."""
    named = data.example if isinstance(data.example, dict) else {"x": data.example}
    return {
        name: {"shape": list(value.shape[1:]), "type": str(value.dtype).removeprefix("torch.")}
        for name, value in named.items()
    }
