"""Expert trajectories for trajectory matching: networks trained on the real data, their weights after every epoch."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import RunStopped, UserError
from tenfold.files import first_line, write_atomically
from tenfold.seeds import derived_seed
from tenfold.systems.condensation_audit.data.real_data import RealData
from tenfold.systems.condensation_audit.networks.factories import Factory, network_fingerprint, seeded_network
from tenfold.systems.condensation_audit.training.siamese_augmentation import apply_augmentation, draw_augmentation


@dataclass
class ExpertSettings:
    """Published settings of the buffers [MTT code, buffer.py].

    Attributes:
        experts: networks.
        epochs: of each; there is a snapshot before the first and after every one.
        learning_rate: of plain SGD, without momentum and decay.
        batch_size: images a step.
        strategy: augmentation; none where empty.
    """

    experts: int = 100
    epochs: int = 50
    learning_rate: float = 0.01
    batch_size: int = 256
    strategy: str = "color_crop_cutout_flip_scale_rotate"


def flat_parameters(network: nn.Module) -> Tensor:
    """``(p,)`` all parameters in the order of registration: a copy, which later training does not change.

    ``detach().cpu()`` alone copies nothing on a CPU: all snapshots would be the last weights.
    """
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).cpu().clone()


def unflatten(flat: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Views of ``(p,)`` by parameter name, differentiable in it."""
    named = dict(network.named_parameters())
    parts = flat.split([parameter.numel() for parameter in named.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(named.items(), parts, strict=True)}


def train_experts(
    data: RealData,
    factory: Factory,
    settings: ExpertSettings,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: str | Path | None = None,
    on_network_trained: Callable[[nn.Module, int, Tensor], None] | None = None,
) -> list[Tensor]:
    """Train the experts.

    Args:
        data: the real images.
        factory: makes a network.
        settings: how they are trained.
        seed: of weights, order, augmentation.
        device: where to train.
        folder: where each expert is kept as ``expert-NNN.safetensors``; those that are there are read.
        on_network_trained: called with every finished expert.

    Returns:
        For each expert ``(epochs + 1, p)`` flat parameters, on the CPU.

    Raises:
        UserError: a kept expert was made from other data, by other settings or of another network.
        RunStopped: the loss is no longer finite.
    """
    found = []
    of_data = data.fingerprint()
    rules = {name: value for name, value in asdict(settings).items() if name != "experts"}
    for number in range(settings.experts):
        path = None if folder is None else Path(folder) / f"expert-{number:03d}.safetensors"
        network = seeded_network(factory, derived_seed(seed, 41, number), device).train()
        size = sum(parameter.numel() for parameter in network.parameters())
        made_from = ""
        if path is not None:
            of_network = network_fingerprint(factory, derived_seed(seed, 41, number))
            made_from = hashlib.sha256(f"{of_data} {of_network} {rules} {seed} {number}".encode()).hexdigest()
        if path is not None and path.exists():
            found.append(_read(path, settings.epochs + 1, size, made_from))
            continue
        snapshots = _trajectory(network, data, settings, derived_seed(seed, 42, number), device)
        found.append(snapshots)
        if path is not None:
            write_atomically(path, save({"parameters": snapshots}, metadata={"made_from": made_from}))
        if on_network_trained is not None:
            on_network_trained(network, number, data.images[:0])
    return found


def _trajectory(
    network: nn.Module, data: RealData, settings: ExpertSettings, seed: int, device: torch.device | str
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate)
    snapshots = [flat_parameters(network)]
    loss = torch.zeros(())
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(data), generator=generator).split(settings.batch_size):
            images = data.images[rows].to(device)
            draw = draw_augmentation(settings.strategy, generator, len(images))
            loss = functional.cross_entropy(network(apply_augmentation(images, draw)), data.labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not bool(loss.isfinite()):
            raise RunStopped("the loss of an expert is no longer finite; lower expert_learning_rate")
        snapshots.append(flat_parameters(network))
    return torch.stack(snapshots)


def _read(path: Path, epochs: int, size: int, made_from: str) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            snapshots, metadata = file.get_tensor("parameters"), file.metadata() or {}
    except Exception as error:  # safetensors raises its own kinds, by version
        raise UserError(f"{path} is not an expert's file: {first_line(error)}") from error
    if metadata.get("made_from") != made_from:
        raise UserError(
            f"{path} is an expert that was made from other images, labels or whitening, by other settings, or of "
            "another network: name another folder for these experts, or remove them"
        )
    return check_trajectory(snapshots, epochs, size, str(path))


def check_trajectory(snapshots: Tensor, epochs: int, size: int, name: str) -> Tensor:
    """A trajectory, if it is one of this network and at least of this length.

    Raises:
        UserError: it is not.
    """
    if snapshots.ndim != 2 or snapshots.shape[1] != size or len(snapshots) < epochs:
        raise UserError(
            f"{name} holds {tuple(snapshots.shape)}; an expert of this network has at least {epochs} snapshots of "
            f"{size} parameters"
        )
    return snapshots[:epochs]


def from_replay_buffer(experts: Sequence[Sequence[Sequence[Tensor]]]) -> list[Tensor]:
    """The official buffers, ``[expert][epoch]`` lists of parameter tensors in module order, as flat trajectories."""
    return [
        torch.stack([torch.cat([tensor.detach().flatten() for tensor in snapshot]) for snapshot in expert])
        for expert in experts
    ]
