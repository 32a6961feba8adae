"""The verbs of this system alone: ``thresholds`` and ``costs``."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.cost import Convention, count_parameters, measure_latency
from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.models.checkpoints import read_safetensors
from tenfold.models.folder import MANIFEST, load_manifest
from tenfold.settings import PositiveInt
from tenfold.systems.boosted_exits.builders import build_network, stages_of
from tenfold.systems.boosted_exits.cli.run_data import data_of
from tenfold.systems.boosted_exits.policies.exit_policy import ExitRecords, record_exits
from tenfold.systems.boosted_exits.policies.metrics import exit_costs
from tenfold.systems.boosted_exits.policies.metrics import predict as predict_images
from tenfold.systems.boosted_exits.policies.solve_thresholds import solve_thresholds
from tenfold.systems.boosted_exits.serving.served_model import SYSTEM, load_network

CPU = torch.device("cpu")


def thresholds(
    run: str,
    *,
    method: Literal["search", "geometric", "risk"] = "search",
    budget: float | None = None,
    epsilon: float = 0.01,
    delta: float = 0.05,
    data: str | None = None,
    root: str | None = None,
    unreadable: Literal["refuse", "leave-out"] = "refuse",
    save: bool = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Solve exit thresholds on a validation split, for a budget or for a tolerated loss of accuracy.

    Args:
        run: folder of the run, or of an imported model.
        method: search (best accuracy within the budget), geometric (the official family) or risk.
        budget: mean cost of an image as a share of the whole network's; for search and geometric.
        epsilon: for risk, tolerated loss of accuracy against the last exit.
        delta: for risk, probability with which it may be exceeded.
        data: name of the data whose validation split decides; needed for an imported model, else the run's own.
        root: folder of these data.
        unreadable: for image files that cannot be read: refuse names them, leave-out goes on without.
        save: keep the thresholds in model.json, for predict and export.
        factory: of a network of your own, see load_network.
    """
    manifest = load_manifest(run, SYSTEM)
    extra = dict(manifest.extra)
    kept = Path(run) / "validation.safetensors"
    if data is None and kept.exists():
        saved = read_safetensors(kept)
        if set(saved) != {"confidences", "correct"}:
            raise UserError(f"{kept} does not hold the validation images' confidences: name data with --data")
        records = ExitRecords(saved["confidences"], saved["correct"], tuple(extra["costs"]))
    elif data is None:
        raise UserError(f"{run} keeps no validation confidences: name data with --data (and --root)")
    else:
        network, _ = load_network(run, factory)
        splits = data_of(manifest, run, data, root, unreadable)
        records = record_exits(*predict_images(network, splits.validation_batches(), CPU), extra["costs"])
        extra["classes"] = list(splits.classes)
    limit = None if budget is None else budget * records.costs[-1]
    policy = solve_thresholds(records, method, budget=limit, epsilon=epsilon, delta=delta)
    if save:
        updated = manifest.model_copy(update={"extra": extra | {"policy": policy.to_dict()}})
        write_atomically(Path(run) / MANIFEST, updated.model_dump_json(indent=1) + "\n")
    return policy.to_dict()


def costs(
    network: str,
    *,
    num_classes: PositiveInt = 10,
    image_shape: list[int] | None = None,
    arguments: dict[str, Any] | None = None,
    taps: list[str] | None = None,
    convention: Convention = "multiply-adds",
) -> str:
    """Count a network's parameters and the cost of each exit, and time its stages on this machine.

    Args:
        network: small-cnn, msdnet, ranet, torchvision/NAME or timm/NAME.
        num_classes: number of classes.
        image_shape: (channels, height, width); 3 x 32 x 32 where not given.
        arguments: of the network, such as {published: cifar-anytime}.
        taps: modules that get an exit, for networks without exits.
        convention: multiply-adds, torch (two per multiply-add) or msdnet (the official counter).
    """
    shape = image_shape or [3, 32, 32]
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"--image_shape is [channels, height, width], all positive; got {shape}")
    built = build_network(network, num_classes=num_classes, image_shape=shape, arguments=arguments, taps=taps or ())
    stages = stages_of(built.eval(), torch.zeros(2, *shape)).eval()
    example = torch.zeros(1, *shape)
    counted = exit_costs(stages, example, convention)
    lines = [f"parameters: {count_parameters(built):,}", f"{'exit':>4}  {convention:>16}  {'stage + head, ms':>16}"]
    state: Any = example
    with torch.inference_mode():
        for n, cost in enumerate(counted):
            before = state
            latency = measure_latency(lambda n=n, before=before: stages.run_stage(n, before))  # type: ignore[misc]
            state, _ = stages.run_stage(n, before)
            lines.append(f"{n + 1:>4}  {cost:>16,}  {latency.median_ms:>16.3f}")
    return "\n".join(lines)
