"""Boosted early exits: the experiment, read from top to bottom.

Data, network, the arms (joint training, boosted training, ablations), measurement on the test split with thresholds
from the validation split, comparison over seeds, delivery of the boosted network. Every function can be called on
its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tenfold
from tenfold.cost import count_parameters
from tenfold.data import Batches, Splits, load_image_splits
from tenfold.export import save_model
from tenfold.parallel import gather_rows, rank, total_over_ranks
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network, parameter_groups, stages_of
from tenfold.systems.boosted_exits.experiment.comparison import claims_of, plots_of, summarise, tables_of
from tenfold.systems.boosted_exits.experiment.settings import ARMS, PRESETS, Arm, Config, arms_of
from tenfold.systems.boosted_exits.method import BoostedExitLoss
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.policies.exit_policy import ExitRecords, evaluate_policy, record_exits
from tenfold.systems.boosted_exits.policies.geometric_family import geometric_policy
from tenfold.systems.boosted_exits.policies.metrics import (
    area_under_curve,
    calibration_errors,
    exit_accuracies,
    exit_costs,
    hard_share,
    predict,
)
from tenfold.systems.boosted_exits.policies.search_front import search_front
from tenfold.systems.boosted_exits.policies.solve_thresholds import best_within, solve_thresholds
from tenfold.systems.boosted_exits.serving.runner import EarlyExitRunner
from tenfold.training import fit, learning_rate_factor, sgd

__all__ = ["ARMS", "PRESETS", "Arm", "Config", "deliver", "make_network", "measure", "run", "train_arm"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, compare them, deliver the boosted network.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    splits = load_image_splits(config.data)
    for arm in arms.values():  # what cannot be built or cut fails now, not after hours
        stages_of(make_network(config, splits, arm.reweight, arm.rescale), splits.example(2))
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for seed in range(config.seed, config.seed + config.seeds):
        for name in arms:
            step = f"{name}/seed{seed}"
            outcomes[name].append(
                run.step(step, lambda folder: train_arm(config, splits, arms[name], seed, folder, run, step))  # noqa: B023
            )
    delivered = run.step("delivery", lambda _: deliver(config, splits, run))
    return Results(
        system="boosted-exits",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
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


def make_network(config: Config, splits: Splits, reweight: Sequence[float], rescale: bool) -> ExitNetwork:
    """The network of the settings, for the data's images and classes."""
    return build_network(
        config.model.name,
        num_classes=len(splits.classes),
        image_shape=splits.image_shape,
        arguments=config.model.arguments,
        taps=config.model.taps,
        factory=config.model.factory,
        weights=config.model.weights,
        reweight=reweight,
        rescale=rescale,
    )


def train_arm(config: Config, splits: Splits, arm: Arm, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
    """Train one arm with one seed and measure it: the numbers of ``measure``, and the training's history.

    The initial weights and the order of the images depend on the seed only, so that arms are paired.
    """
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
        optimizer=sgd(
            parameter_groups(network, config.model.mode, options.learning_rate, options.weight_decay),
            learning_rate=options.learning_rate,
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
    outcome = measure(network, splits, costs, device)
    if rank() == 0:
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
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


def measure(network: ExitNetwork, splits: Splits, costs: Sequence[float], device: torch.device) -> dict[str, Any]:
    """Anytime and budgeted numbers of a trained network: thresholds from validation, accuracies from test.

    Returns:
        ``accuracy`` (per exit, in percent), ``area``, ``calibration_error``, ``hard_share`` (of training images),
        ``budgets`` with the test accuracy and cost of ``searched`` and ``geometric`` thresholds at each.
    """
    validation = record_exits(*predict(network, splits.validation_batches(), device), costs)
    test = record_exits(*predict(network, splits.test_batches(), device), costs)
    hard = hard_share(*predict(network, splits.plain_training_batches(), device))
    accuracies = (100 * exit_accuracies(test)).tolist()
    budgets = torch.linspace(costs[0], costs[-1], 24, dtype=torch.float64).tolist()
    front = search_front(validation)
    policies = {
        "searched": [best_within(front, budget) for budget in budgets],
        "geometric": [geometric_policy(validation, budget) for budget in budgets],
    }
    return {
        "costs": list(costs),
        "accuracy": accuracies,
        "area": area_under_curve(costs, accuracies),
        "calibration_error": calibration_errors(test).tolist(),
        "hard_share": hard.tolist(),
        "budgets": budgets,
        **{name: _on_test(found, test) for name, found in policies.items()},
    }


def _on_test(policies: Sequence[Any], test: ExitRecords) -> dict[str, list[float]]:
    outcomes = [evaluate_policy(test, policy.thresholds) for policy in policies]
    return {
        "validation_accuracy": [100 * policy.accuracy for policy in policies],
        "accuracy": [100 * outcome.accuracy for outcome in outcomes],
        "cost": [outcome.cost for outcome in outcomes],
    }


def deliver(config: Config, splits: Splits, run: Run) -> dict[str, Any]:
    """Serve the boosted network of the first seed at the budget of the settings, and write the model folder.

    The served answers are compared with the simulated ones: the same exits, the same logits.
    """
    arm = arms_of(config)["boosted"]
    network = make_network(config, splits, arm.reweight, arm.rescale)
    network.load_state_dict(load_file(run.folder / f"steps/boosted/seed{config.seed}/weights.safetensors"))
    network.eval()
    stages = stages_of(network, splits.example(2))
    costs = exit_costs(stages, splits.example(1), config.cost)
    device = config.trainer.device
    validation = record_exits(*predict(network, splits.validation_batches(), device), costs)
    policy = solve_thresholds(validation, "search", budget=max(config.budget * costs[-1], costs[0]))
    ensembles, labels = predict(network, splits.test_batches(), device)
    test = record_exits(ensembles, labels, costs)
    outcome = evaluate_policy(test, policy.thresholds)

    served = serve(stages.to(device), policy.thresholds, splits.test_batches(), device)
    simulated = torch.stack(ensembles).cpu()[outcome.exits, torch.arange(len(labels))]
    if rank() == 0:
        kept = {"confidences": validation.confidences.contiguous(), "correct": validation.correct.contiguous()}
        save_file(kept, run.folder / "validation.safetensors")
        save_model(
            run.folder,
            network.cpu(),
            system="boosted-exits",
            builder=config.model.name,
            arguments={
                "num_classes": len(splits.classes),
                "image_shape": list(splits.image_shape),
                "arguments": config.model.arguments,
                "taps": config.model.taps,
                "factory": config.model.factory,
                "reweight": list(arm.reweight),
                "rescale": arm.rescale,
            },
            extra={
                "classes": list(splits.classes),
                "preprocessing": splits.preprocessing.to_dict(),
                "costs": list(costs),
                "cost_convention": config.cost,
                "policy": policy.to_dict(),
            },
        )
    return {
        "params": count_parameters(network),
        "costs": list(costs),
        "policy": policy.to_dict(),
        "accuracy": 100 * outcome.accuracy,
        "cost": outcome.cost,
        "exit_shares": list(outcome.exit_shares),
        "full_accuracy": 100 * float(exit_accuracies(test)[-1]),
        "different_exits": int((served[1] != outcome.exits).sum()),
        "largest_difference": float((served[0] - simulated).abs().max()),
    }


def serve(
    stages: EarlyExitModel, thresholds: Sequence[float], batches: Batches, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits ``(images, classes)`` and exits ``(images,)`` of all images, on the CPU, from stages that stop."""
    runner = EarlyExitRunner(stages, thresholds)
    outputs, indices = [], []
    for images, _, rows in batches:
        outputs.append(runner(images.to(device)))
        indices.append(rows)
    logits, exits = torch.cat([o.logits for o in outputs]), torch.cat([o.exits for o in outputs])
    places = torch.cat(indices).to(device)
    total = total_over_ranks(len(places))
    return gather_rows(logits, places, total).cpu(), gather_rows(exits, places, total).cpu()
