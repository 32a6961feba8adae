"""Beyond the table of rows: joint training (paper A), ensembles (paper B), and what the method depends on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold.run import Run
from tenfold.systems.activation_uncertainty.ablations import vary
from tenfold.systems.activation_uncertainty.data import TaskData
from tenfold.systems.activation_uncertainty.joint import JointTask
from tenfold.systems.activation_uncertainty.main_models import (
    labelled,
    load_main,
    make_learner,
    make_model,
    objective_for,
    train_main,
    weights_of,
)
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty, ensemble_labels
from tenfold.systems.activation_uncertainty.metrics import quality
from tenfold.systems.activation_uncertainty.settings import Config, TaskSettings
from tenfold.training import fit


def train_jointly(config: Config, task: TaskSettings, data: TaskData, folder: Path, run: Run) -> dict[str, Any]:
    """Train the first seed's main model again with the estimator as an auxiliary task; compare it with post hoc.

    Returns:
        Quality of the joint estimator before and after its short post-hoc fit, and how many of the main model's weights
        differ from those of the training without it (none).
    """
    torch.manual_seed(config.seed)
    model = make_model(task, data)
    learner = make_learner(config, task, data, model, config.seed)
    batches = data.training_batches(task.optimizer.batch_size, seed=config.seed)
    steps = len(batches) * task.optimizer.epochs
    joint = JointTask(learner, start=steps // 2, share=0.25, passes=4, seed=config.seed)
    both = nn.ModuleDict({"main": model, "joint": joint})
    options = task.optimizer
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
        optimizer=torch.optim.Adam(
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
    alone = load_file(weights_of(run, f"main/{task.name}/seed{config.seed}"))
    differing = sum(int((alone[name] != value.cpu()).sum()) for name, value in model.state_dict().items())
    auxiliary, test, _ = labelled(config, data, learner, config.seed)
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
    """Counts optimizer steps; a buffer, so that a resumed training goes on counting."""

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
            task.optimizer,
        )  # fmt: skip
        if not (own / "weights.safetensors").exists():
            train_main(config, changed, data, config.seed, own, run)
        return load_main(changed, data, own / "weights.safetensors", config.trainer.device)

    main = load_main(task, data, weights_of(run, f"main/{task.name}/seed{config.seed}"), config.trainer.device)

    def learner_on(model: nn.Module, **changes: Any) -> ActivationUncertainty:
        return make_learner(config, task, data, model, config.seed, **changes)

    return vary(data, main, learner_on, model_at if task.model.name in ("mlp", "cnn", "ratings", "clicks") else None)
