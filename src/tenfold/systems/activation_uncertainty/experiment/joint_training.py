"""Paper A: the estimator as an auxiliary task of the main training, compared with the post-hoc fit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.models.checkpoints import read_safetensors
from tenfold.run import Run
from tenfold.systems.activation_uncertainty.data.task_data import TaskData
from tenfold.systems.activation_uncertainty.estimator.metrics import quality
from tenfold.systems.activation_uncertainty.experiment.intervals import r2_difference
from tenfold.systems.activation_uncertainty.experiment.main_training import (
    labelled,
    make_learner,
    make_model,
    objective_for,
    weights_of,
)
from tenfold.systems.activation_uncertainty.experiment.settings import Config, TaskSettings
from tenfold.systems.activation_uncertainty.joint import JointTask
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
            "measure/joint",
            epoch,
            options.epochs,
            f"loss {row['train/main']:.3f}, auxiliary {row['train/auxiliary']:.3f}",
        ),
    )
    alone = read_safetensors(weights_of(run, f"main/{task.name}/seed{config.seed}"))
    differing = sum(int((alone[name] != value.cpu()).sum()) for name, value in model.state_dict().items())
    auxiliary, test, _ = labelled(config, data, learner, config.seed)
    with torch.no_grad():
        before = quality(test.uncertainty, joint.estimator.eval()(test.features))
    few = auxiliary.subset(slice(0, max(len(auxiliary) // 10, 50)))
    fits: dict[str, dict[str, Any]] = {
        "joint, short fit": {"loss": "gamma", "start": joint.estimator},
        "post hoc, same rows and loss": {"loss": "gamma"},
        "post hoc, same rows": {},
    }
    estimates = {name: learner.fit(few, **options).estimate(test) for name, options in fits.items()}
    ours, theirs = estimates["joint, short fit"], estimates["post hoc, same rows and loss"]
    return {
        "joint": asdict(before),
        **{name: asdict(quality(test.uncertainty, found)) for name, found in estimates.items()},
        "rows": len(few),
        "differing_weights": differing,
        "interval": [*r2_difference(test.uncertainty, ours, theirs).interval],
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
