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
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tenfold
from tenfold.cost import count_flops, count_parameters
from tenfold.export import save_model
from tenfold.parallel import rank
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.activation_uncertainty.ablations import vary
from tenfold.systems.activation_uncertainty.builders import build_model, state_of
from tenfold.systems.activation_uncertainty.calls import call
from tenfold.systems.activation_uncertainty.comparison import claims_of, metrics_of, plots_of, tables_of
from tenfold.systems.activation_uncertainty.data import TaskData, load_task
from tenfold.systems.activation_uncertainty.joint import JointTask
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty, ensemble_labels
from tenfold.systems.activation_uncertainty.metrics import (
    level_deciles,
    overlap_at,
    quality,
    retention_area,
    retention_curve,
)
from tenfold.systems.activation_uncertainty.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.prefix import PrefixCache
from tenfold.systems.activation_uncertainty.rows import Comparison
from tenfold.systems.activation_uncertainty.serving import UncertainModel
from tenfold.systems.activation_uncertainty.settings import PRESETS, TASKS, Config, TaskSettings, tasks_of
from tenfold.training import fit

__all__ = ["PRESETS", "TASKS", "Config", "deliver", "make_learner", "make_model", "measure", "run", "train_main"]

Objective = Any


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
            weights = _weights(run, f"main/{name}")
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
            config.trainer.device.type, data=", ".join(loaded), train_rows=data.sizes["train"],
            auxiliary_rows=data.sizes["auxiliary"], test_rows=data.sizes["test"],
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
    )  # fmt: skip


def make_model(task: TaskSettings, data: TaskData) -> nn.Module:
    """The main model of a task."""
    model = task.model
    return build_model(
        model.name, **data.model_facts, rate=task.dropout.rate, arguments=model.arguments, factory=model.factory,
        weights=model.weights,
    )  # fmt: skip


def make_learner(
    config: Config, task: TaskSettings, data: TaskData, model: nn.Module, seed: int, **changes: Any
) -> ActivationUncertainty:
    """The estimator's learner on a main model."""
    estimator, dropout = config.estimator, task.dropout
    options: dict[str, Any] = {
        "target": data.target if estimator.target == "auto" else estimator.target,
        "taps": estimator.taps,
        "form": estimator.form,
        "pool": estimator.pool,
        "places": dropout.places,
        "rate": dropout.rate,
        "add": dropout.add,
        "drop_path": dropout.drop_path,
        "passes": estimator.passes,
        "seed": seed,
    }
    return ActivationUncertainty(model, data.example, **{**options, **changes})


def objective_for(data: TaskData) -> Objective:
    """The main model's loss: cross-entropy over classes, squared error, or binary cross-entropy."""
    losses = {"classes": F.cross_entropy, "value": F.mse_loss, "binary": F.binary_cross_entropy_with_logits}
    loss: Any = losses[data.kind]

    def objective(model: nn.Module, batch: tuple[Any, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, labels = batch
        return loss(call(model, inputs), labels), {}

    return objective


def train_main(
    config: Config, task: TaskSettings, data: TaskData, seed: int, folder: Path, run: Run, order: int | None = None
) -> dict[str, Any]:
    """Train a main model; its weights are left in the folder.

    Args:
        config: the settings.
        task: what is trained.
        data: on what.
        seed: of the first weights.
        folder: of the step.
        run: for progress.
        order: seed of the rows' order, the same as ``seed`` where ``None``.
    """
    torch.manual_seed(seed)
    model = make_model(task, data)
    options = task.optimiser
    fitted = fit(
        model,
        objective_for(data),
        data.training_batches(options.batch_size, seed=seed if order is None else order),
        epochs=options.epochs,
        optimiser=torch.optim.Adam(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(
            folder.name, epoch, options.epochs, f"{task.name}: loss {row['train/loss']:.3f}"
        ),
    )
    if rank() == 0:
        save_file(state_of(model), folder / "weights.safetensors")
    return {"history": fitted.history, "seconds": fitted.seconds}


def _weights(run: Run, step: str) -> Path:
    return run.folder / "steps" / step / "weights.safetensors"


def load_main(task: TaskSettings, data: TaskData, weights: Path, device: torch.device) -> nn.Module:
    """A trained main model, in eval mode."""
    model = make_model(task, data)
    model.load_state_dict(load_file(weights))
    return model.to(device).eval()


def _labelled(
    config: Config, data: TaskData, learner: ActivationUncertainty, seed: int
) -> tuple[DropoutLabels, DropoutLabels, DropoutLabels]:
    """Auxiliary labels, test labels, and test labels of other passes."""
    passes = config.estimator.test_passes
    return (
        learner.label(data.numbered("auxiliary"), seed=1000 * seed),
        learner.label(data.numbered("test"), seed=1000 * seed + 1, passes=passes),
        learner.label(data.numbered("test"), seed=1000 * seed + 2, passes=passes),
    )


def measure(config: Config, task: TaskSettings, data: TaskData, seed: int, weights: Path) -> dict[str, Any]:
    """All rows of the comparison for one trained main model.

    Returns:
        ``rows`` (by name, see :class:`~tenfold.systems.activation_uncertainty.rows.Comparison`), ``ceiling``, layers
        that were tried and chosen, areas under the retention curve, deciles, costs, the mean uncertainty of training
        and held-out rows, and the number of main predictions that the tapping changed.
    """
    model = load_main(task, data, weights, config.trainer.device)
    learner = make_learner(config, task, data, model, seed)
    untapped = [call(model, inputs).detach() for inputs, _ in data.numbered("test")]
    auxiliary, test, again = _labelled(config, data, learner, seed)

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


def train_jointly(config: Config, task: TaskSettings, data: TaskData, folder: Path, run: Run) -> dict[str, Any]:
    """Train the first seed's main model again with the estimator as an auxiliary task; compare it with post hoc.

    Returns:
        Quality of the joint estimator before and after its short post-hoc fit, and how many of the main model's weights
        differ from those of the training without it (none).
    """
    torch.manual_seed(config.seed)
    model = make_model(task, data)
    learner = make_learner(config, task, data, model, config.seed)
    batches = data.training_batches(task.optimiser.batch_size, seed=config.seed)
    steps = len(batches) * task.optimiser.epochs
    joint = JointTask(learner, start=steps // 2, share=0.25, passes=4, seed=config.seed)
    both = nn.ModuleDict({"main": model, "joint": joint})
    options = task.optimiser
    main_loss, counter = objective_for(data), _Steps()
    both.add_module("steps", counter)

    def objective(modules: nn.Module, batch: tuple[Any, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        parts: Any = modules
        loss, _ = main_loss(parts["main"], batch)
        auxiliary = joint(batch[0], parts["steps"].next())
        return loss + auxiliary, {"main": loss, "auxiliary": auxiliary}

    fit(
        both,
        objective,
        batches,
        epochs=options.epochs,
        optimiser=torch.optim.Adam(
            [
                {"params": list(model.parameters()), "weight_decay": options.weight_decay},
                {"params": list(joint.estimator.parameters()), "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        ),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(
            "joint", epoch, options.epochs, f"loss {row['train/main']:.3f}, auxiliary {row['train/auxiliary']:.3f}"
        ),
    )
    alone = load_file(_weights(run, f"main/{task.name}/seed{config.seed}"))
    differing = sum(int((alone[name] != value.cpu()).sum()) for name, value in model.state_dict().items())
    auxiliary, test, _ = _labelled(config, data, learner, config.seed)
    with torch.no_grad():
        before = quality(test.uncertainty, joint.estimator.eval()(test.features))
    few = auxiliary.subset(slice(0, max(len(auxiliary) // 10, 50)))
    after = learner.fit(few, loss="gamma", start=joint.estimator).evaluate(test)
    same_loss = learner.fit(few, loss="gamma").evaluate(test)
    post_hoc = learner.fit(few).evaluate(test)
    return {
        "joint": asdict(before),
        "joint, short fit": asdict(after),
        "post hoc, same rows and loss": asdict(same_loss),
        "post hoc, same rows": asdict(post_hoc),
        "rows": len(few),
        "differing_weights": differing,
    }


class _Steps(nn.Module):
    """Counts optimiser steps; a buffer, so that a resumed training goes on counting."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def next(self) -> int:
        """Number of the step that is being made, from 0."""
        self.step += 1
        return int(self.step) - 1


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


def vary_settings(config: Config, task: TaskSettings, data: TaskData, folder: Path, run: Run) -> dict[str, Any]:
    """What the method depends on, on the first seed: see :mod:`~tenfold.systems.activation_uncertainty.ablations`."""

    def model_at(rate: float) -> nn.Module:
        own = folder / f"rate{rate:g}"
        changed = TaskSettings(
            task.name, task.data, task.model, type(task.dropout)(**{**asdict(task.dropout), "rate": rate}),
            task.optimiser,
        )  # fmt: skip
        if not (own / "weights.safetensors").exists():
            train_main(config, changed, data, config.seed, own, run)
        return load_main(changed, data, own / "weights.safetensors", config.trainer.device)

    main = load_main(task, data, _weights(run, f"main/{task.name}/seed{config.seed}"), config.trainer.device)

    def learner_on(model: nn.Module, **changes: Any) -> ActivationUncertainty:
        return make_learner(config, task, data, model, config.seed, **changes)

    return vary(data, main, learner_on, model_at if task.model.name in ("mlp", "cnn", "ratings", "clicks") else None)


def deliver(config: Config, task: TaskSettings, data: TaskData, chosen: Sequence[str], run: Run) -> dict[str, Any]:
    """Write the first seed's main model and its estimator on the chosen layers into the run's folder."""
    model = load_main(task, data, _weights(run, f"main/{task.name}/seed{config.seed}"), config.trainer.device)
    learner = make_learner(config, task, data, model, config.seed)
    auxiliary, test, _ = _labelled(config, data, learner, config.seed)
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
                "normalisation": data.normalisation,
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
    """Shapes and types of one row of inputs by name, from which :mod:`commands` makes blank ones."""
    named = data.example if isinstance(data.example, dict) else {"x": data.example}
    return {
        name: {"shape": list(value.shape[1:]), "type": str(value.dtype).removeprefix("torch.")}
        for name, value in named.items()
    }
