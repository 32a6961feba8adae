"""Activation uncertainty: the experiment, read from top to bottom.

For each task and seed: train the main model, label held-out and test rows by passes with dropout, fit the estimator and
all that it is compared with, measure. Then the papers' further claims (joint training, ensembles), what the method
depends on (ablations), and the delivery of the first seed's model with its estimator.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.models.builders import arguments_to_keep
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.activation_uncertainty.data.task_data import TaskData, load_task
from tenfold.systems.activation_uncertainty.estimator.metrics import (
    level_deciles,
    overlap_at,
    retention_area,
    retention_curve,
)
from tenfold.systems.activation_uncertainty.experiment.ablations import RATES, vary_settings
from tenfold.systems.activation_uncertainty.experiment.baselines import Comparison
from tenfold.systems.activation_uncertainty.experiment.comparison import claims_of, metrics_of, summary_of
from tenfold.systems.activation_uncertainty.experiment.ensembles import ensemble_trainings, measure_ensemble
from tenfold.systems.activation_uncertainty.experiment.intervals import intervals_of
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
from tenfold.systems.activation_uncertainty.experiment.settings import PRESETS, Config, TaskSettings, tasks_of
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.labels.prefix_cache import PrefixCache
from tenfold.systems.activation_uncertainty.main_models.build import OWN
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.batches import Batch
from tenfold.systems.activation_uncertainty.network.calling import call
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel
from tenfold.training.parallel import rank
from tenfold.workers import Step, Work, do_steps

__all__ = ["PRESETS", "Config", "run"]


def run(config: Config, run: Run) -> Results:
    """Measure all tasks over all seeds, then deliver the first task's first model with its estimator.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    place = Place(config)
    for task in place.tasks.values():  # what cannot be built or has no dropout fails now, not after hours
        make_learner(config, task, place.data(task.name), make_model(task, place.data(task.name)), config.seed)
    trainings, measurements = plan(config)
    run.say(
        f"{len(trainings)} trainings of main models, {len(measurements)} measurements: {', '.join(place.tasks)}, "
        f"{config.seeds} seed(s); fewer with --seeds 1, --ensemble 0, --ablations false or --companions '[]'"
    )
    for note in dict.fromkeys(note for name in place.tasks for note in place.data(name).notes):
        run.say(note)
    found = do_steps(
        run,
        [trainings, measurements, [Step("delivery", ("delivery",))]],
        partial(open_place, config),
        workers=workers_of(config),
        threads=config.trainer.threads or torch.get_num_threads(),
        work=place.work,
    )
    seeds = range(config.seed, config.seed + config.seeds)
    outcomes = {name: [found[f"measure/{name}/seed{seed}"] for seed in seeds] for name in place.tasks}
    extra = {name: found[f"measure/{name}"] for name in FURTHER if f"measure/{name}" in found}
    delivered = found["delivery"]
    data = place.data(next(iter(place.tasks)))
    return Results(
        system="activation-uncertainty",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes),
        claims=claims_of(outcomes, extra),
        metrics=metrics_of(outcomes, extra),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["multiply_adds"] + delivered["estimator_multiply_adds"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=", ".join(place.tasks),
            train_rows=data.sizes["train"],
            auxiliary_rows=data.sizes["auxiliary"],
            test_rows=data.sizes["test"],
        ),
        plots=plots_of(outcomes, extra),
        tables=tables_of(outcomes, extra, delivered),
        notes=[
            *dict.fromkeys(note for name in place.tasks for note in place.data(name).notes),
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


FURTHER = ("joint", "ensemble", "ablations")
"""What may be measured beside the tasks, once."""


def plan(config: Config) -> tuple[list[Step], list[Step]]:
    """The trainings, and the measurements of what they leave."""
    tasks, seeds = tasks_of(config), range(config.seed, config.seed + config.seeds)
    trainings = [Step(f"main/{task.name}/seed{seed}", ("train", task.name, seed)) for task in tasks for seed in seeds]
    measurements = [
        Step(f"measure/{task.name}/seed{seed}", ("measure", task.name, seed)) for task in tasks for seed in seeds
    ]
    first = tasks[0]
    if config.joint:
        measurements.append(Step("measure/joint", ("joint", first.name)))
    if config.ensemble:
        task = next((task for task in tasks if task.data.name.startswith(("ratings", "movielens"))), first)
        trainings += ensemble_trainings(config, task)
        measurements.append(Step("measure/ensemble", ("ensemble", task.name)))
    if config.ablations:
        if first.model.name in OWN:
            trainings += [Step(f"rates/{rate:g}", ("train", first.name, config.seed, None, rate)) for rate in RATES]
        measurements.append(Step("measure/ablations", ("ablations", first.name)))
    return trainings, measurements


def workers_of(config: Config) -> int | None:
    """Processes that share the steps: one where a training has several itself, or computes on a GPU."""
    trainer = config.trainer
    alone = trainer.devices * trainer.num_nodes > 1 or trainer.device.type == "cuda"
    return 1 if alone and config.workers is None else config.workers


class Place:
    """What the steps need: tasks by name, and their data, read when first asked for.

    Args:
        config: the settings.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tasks = {task.name: task for task in tasks_of(config)}
        self._data: dict[str, TaskData] = {}

    def data(self, name: str) -> TaskData:
        """The data of a task."""
        if name not in self._data:
            self._data[name] = load_task(**asdict(self.tasks[name].data))
        return self._data[name]

    def work(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """Do one step of the plan."""
        config = self.config
        kind, *rest = step.arguments
        name = rest[0] if rest else next(iter(self.tasks))
        task, data = self.tasks[name], self.data(name)
        if kind == "train":
            seed, order, rate = (*rest[1:], None, None)[:3]
            return train_main(config, task.at_rate(rate), data, seed, folder, run, order=order)
        if kind == "measure":
            return measure(config, task, data, rest[1], weights_of(run, f"main/{name}/seed{rest[1]}"))
        if kind == "joint":
            return train_jointly(config, task, data, folder, run)
        if kind == "ensemble":
            return measure_ensemble(config, task, data, run)
        if kind == "ablations":
            return vary_settings(config, task, data, run)
        chosen = json.loads((run.folder / f"steps/measure/{name}/seed{config.seed}/result.json").read_text())["chosen"]
        return deliver(config, task, data, chosen, run)


def open_place(config: Config) -> Work:
    """What does the steps, in a process of its own."""
    return Place(config).work


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
        "intervals": intervals_of(table) if config.seeds == 1 else {},
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
        yield Batch(inputs, ids)
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
                "arguments": arguments_to_keep(task.model.arguments),
                "factory": task.model.factory,
            },
            extra={
                "kind": data.kind,
                "classes": list(data.classes),
                "preprocessing": None if data.preprocessing is None else data.preprocessing.to_dict(),
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
