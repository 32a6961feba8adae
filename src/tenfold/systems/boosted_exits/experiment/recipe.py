"""Boosted early exits: the experiment, read from top to bottom.

Data, network, the arms (joint training, boosted training, ablations), measurement on the test split with thresholds
from the validation split, comparison over seeds, delivery of the boosted network. Every function can be called on
its own.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import tenfold
from tenfold.data import Splits, load_image_splits
from tenfold.files import atomic_path
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.boosted_exits.builders import parameter_groups, stages_of
from tenfold.systems.boosted_exits.experiment.comparison import claims_of, plots_of, summarise, summary_of, tables_of
from tenfold.systems.boosted_exits.experiment.deliver import deliver, make_network
from tenfold.systems.boosted_exits.experiment.measure import measure
from tenfold.systems.boosted_exits.experiment.settings import ARMS, PRESETS, Arm, Config, arms_of
from tenfold.systems.boosted_exits.method import BoostedExitLoss
from tenfold.systems.boosted_exits.policies.exit_policy import record_exits
from tenfold.systems.boosted_exits.policies.metrics import area_under_curve, exit_accuracies, exit_costs, predict
from tenfold.training import fit, learning_rate_factor
from tenfold.training.parallel import rank
from tenfold.workers import Step, Work, do_steps

__all__ = ["ARMS", "PRESETS", "Arm", "Config", "run", "train_arm"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, compare them, deliver the boosted network.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    splits = load_image_splits(config.data)
    for arm in arms.values():  # what cannot be built, cut or trained in this mode fails now, not after hours
        network = make_network(config, splits, arm.reweight, arm.rescale)
        stages_of(network, splits.example(2))
        parameter_groups(network, config.model.mode, config.optimizer.learning_rate, config.optimizer.weight_decay)
    seeds = range(config.seed, config.seed + config.seeds)
    steps = [Step(step_name(name, seed), (name, seed)) for seed in seeds for name in arms]
    run.say(
        f"{len(steps)} trainings ({len(arms)} arms x {len(seeds)} seeds) of {config.optimizer.epochs} epochs on "
        f"{splits.name}; fewer with --seeds 1 or --arms '[{next(iter(arms))}]'"
    )
    for note in splits.notes:
        run.say(note)
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    open_place = partial(open_experiment, config, splits)
    found = do_steps(
        run, [steps], open_place, workers=1 if alone else config.workers, threads=config.trainer.threads or 1
    )
    outcomes = {name: [found[step_name(name, seed)] for seed in seeds] for name in arms}
    delivered = run.step("delivery", lambda _: deliver(config, splits, run))
    return Results(
        system="boosted-exits",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes, delivered),
        claims=claims_of(outcomes, delivered),
        metrics=summarise(outcomes),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["costs"][-1],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(config.trainer.device.type, data=splits.name, train_images=len(splits.train)),
        plots=plots_of(outcomes, delivered, unit=config.cost),
        tables=tables_of(outcomes, delivered),
        notes=[
            *splits.notes,
            f"Costs are counted in {config.cost} per image, heads included: in an additive model exit n needs all "
            "earlier heads.",
            "Epochs and thresholds are chosen on the validation split, in every arm alike; the test split is only "
            "measured.",
        ],
    )


def step_name(arm: str, seed: int) -> str:
    """Name of the step, and of its folder, that trains an arm with a seed."""
    return f"{arm}/seed{seed}"


def open_experiment(config: Config, splits: Splits) -> Work:
    """What a process needs for its steps: trains one arm with one seed in a folder."""

    def work(step: Step, folder: Path, run: Run) -> dict[str, Any]:
        name, seed = step.arguments
        return train_arm(config, splits, name, seed, folder, run)

    return work


def train_arm(config: Config, splits: Splits, name: str, seed: int, folder: Path, run: Run) -> dict[str, Any]:
    """Train one arm with one seed and measure it: the numbers of ``measure``, and the training's history.

    The initial weights and the order of the images depend on the seed only, so that arms are paired.
    """
    arm, step = arms_of(config)[name], step_name(name, seed)
    torch.manual_seed(seed)
    network = make_network(config, splits, arm.reweight, arm.rescale)
    costs = exit_costs(stages_of(network, splits.example(2)), splits.example(1), config.cost)
    device = config.trainer.device
    options = config.optimizer
    batches = splits.training_batches(options.batch_size, seed=seed)

    def validate(model: nn.Module) -> dict[str, float]:
        ensembles, labels = predict(model, splits.validation_batches(), device)
        accuracies = exit_accuracies(record_exits(ensembles, labels, costs)).tolist()
        return {"area": area_under_curve(costs, accuracies)} | {
            f"accuracy{n + 1}": accuracy for n, accuracy in enumerate(accuracies)
        }

    fitted = fit(
        network,
        _ExitObjective(arm, config.method.equalise),
        batches,
        epochs=options.epochs,
        optimizer=torch.optim.SGD(
            parameter_groups(network, config.model.mode, options.learning_rate, options.weight_decay),
            lr=options.learning_rate,
            momentum=options.momentum,
        ),
        schedule=learning_rate_factor(
            options.schedule,
            total_steps=options.epochs * len(batches),
            steps_per_epoch=len(batches),
            milestones=options.milestones,
            warmup_epochs=options.warmup_epochs,
        ),
        folder=folder,
        options=config.trainer,
        validate=validate,
        select="area",  # the official code takes the best last exit on the test set
        on_epoch=lambda epoch, row: run.progress(
            step, epoch, options.epochs, f"loss {row['train/loss']:.3f}, area {row['validation/area']:.3f}"
        ),
    )
    outcome = measure(network, splits, costs, device, examples=config.seeds == 1)
    if rank() == 0:
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        with atomic_path(folder / "weights.safetensors") as temporary:
            save_file(state, temporary)
    return outcome | {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "train_seconds": fitted.seconds,
    }


class _ExitObjective(nn.Module):
    """The loss of a batch, in the form that ``tenfold.training.fit`` takes."""

    def __init__(self, arm: Arm, equalise: bool) -> None:
        super().__init__()
        self.loss = BoostedExitLoss(arm.reweight, F.cross_entropy, stop_gradient=arm.stop_gradient, equalise=equalise)

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        losses = self.loss(model(images), labels)
        return losses.total, {f"loss{n + 1}": loss for n, loss in enumerate(losses.per_exit)}
