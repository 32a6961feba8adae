"""Main models of the experiment: made, trained, loaded, labelled."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.files import atomic_path
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.run import Run
from tenfold.systems.activation_uncertainty.data.task_data import TaskData
from tenfold.systems.activation_uncertainty.experiment.settings import Config, TaskSettings
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels
from tenfold.systems.activation_uncertainty.main_models.build import build_model, state_of
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.calling import call
from tenfold.training import fit
from tenfold.training.parallel import rank, wait_for_all_ranks

Objective = Any


def make_model(task: TaskSettings, data: TaskData) -> nn.Module:
    """The main model of a task."""
    model = task.model
    return build_model(
        model.name,
        **data.model_facts,
        rate=task.dropout.rate,
        arguments=model.arguments,
        factory=model.factory,
        weights=model.weights,
    )


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
    options = task.optimizer
    fitted = fit(
        model,
        objective_for(data),
        data.training_batches(options.batch_size, seed=seed if order is None else order),
        epochs=options.epochs,
        optimizer=torch.optim.Adam(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay),
        folder=folder,
        options=config.trainer,
        on_epoch=lambda epoch, row: run.progress(
            folder.relative_to(run.folder / "steps").as_posix(),
            epoch,
            options.epochs,
            f"{task.name}: loss {row['train/loss']:.3f}",
        ),
    )
    if rank() == 0:
        with atomic_path(folder / "weights.safetensors") as temporary:
            save_file(state_of(model), temporary)
    wait_for_all_ranks()  # which read them
    return {"history": fitted.history, "seconds": fitted.seconds}


def weights_of(run: Run, step: str) -> Path:
    """Where a training's step left its weights."""
    return run.folder / "steps" / step / "weights.safetensors"


def load_main(task: TaskSettings, data: TaskData, weights: Path, device: torch.device) -> nn.Module:
    """A trained main model, in eval mode."""
    model = make_model(task, data)
    load_strictly(model, read_safetensors(weights), weights)
    return model.to(device).eval()


def labelled(
    config: Config, data: TaskData, learner: ActivationUncertainty, seed: int
) -> tuple[DropoutLabels, DropoutLabels, DropoutLabels]:
    """Auxiliary labels, test labels, and test labels of other passes."""
    passes = config.estimator.test_passes
    return (
        learner.label(data.numbered("auxiliary"), seed=1000 * seed),
        learner.label(data.numbered("test"), seed=1000 * seed + 1, passes=passes),
        learner.label(data.numbered("test"), seed=1000 * seed + 2, passes=passes),
    )
