"""The delivered network: served at the budget of the settings, compared with the simulation, written with its data."""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tenfold.cost import count_parameters
from tenfold.data import Batches, Splits
from tenfold.files import atomic_path
from tenfold.models.builders import arguments_to_keep
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.models.folder import save_model
from tenfold.run import Run
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network, stages_of
from tenfold.systems.boosted_exits.experiment.settings import Config, arms_of
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.policies.exit_policy import evaluate_policy, record_exits
from tenfold.systems.boosted_exits.policies.metrics import exit_accuracies, exit_costs, predict
from tenfold.systems.boosted_exits.policies.solve_thresholds import solve_thresholds
from tenfold.systems.boosted_exits.serving.runner import EarlyExitRunner
from tenfold.training.parallel import gather_rows, rank, total_over_ranks


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


def deliver(config: Config, splits: Splits, run: Run) -> dict[str, Any]:
    """Serve the boosted network of the first seed at the budget of the settings, and write the model folder.

    The served answers are compared with the simulated ones: the same exits, the same logits.
    """
    arm = arms_of(config)["boosted"]
    network = make_network(config, splits, arm.reweight, arm.rescale)
    weights = run.folder / f"steps/boosted/seed{config.seed}/weights.safetensors"
    load_strictly(network, read_safetensors(weights), weights)
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
        with atomic_path(run.folder / "validation.safetensors") as temporary:
            save_file(kept, temporary)
        save_model(
            run.folder,
            network.cpu(),
            system="boosted-exits",
            builder=config.model.name,
            arguments={
                "num_classes": len(splits.classes),
                "image_shape": list(splits.image_shape),
                "arguments": arguments_to_keep(config.model.arguments),
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
