"""STRIP: blend an input with clean images; a triggered one keeps its class, so the entropy stays low.

``H(x) = mean over j of the entropy over the classes of f(x / 2 + x_j / 2)``. Gao et al., ACSAC 2019.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tenfold.errors import UserError


@dataclass(frozen=True)
class Strip:
    """What STRIP found.

    Attributes:
        entropies: ``(n,)`` mean entropy of each input, in nats, 0 to the logarithm of the number of classes.
        threshold: inputs below are flagged.
        flagged: ``(n,)`` bool.
        seconds: wall-clock time.
    """

    entropies: Tensor
    threshold: float
    flagged: Tensor
    seconds: float

    @property
    def score(self) -> float:
        """Share of flagged inputs."""
        return float(self.flagged.double().mean())


@torch.inference_mode()
def blend_entropies(
    network: nn.Module, images: Tensor, overlays: Tensor, *, count: int = 64, batch_size: int = 1024, seed: int = 0
) -> Tensor:
    """``(n,)`` mean entropy of the classes over blends with ``count`` overlays, in nats.

    Args:
        network: classifier of normalized images, in evaluation mode.
        images: ``(n, channels, height, width)`` normalized inputs.
        overlays: ``(m, channels, height, width)`` normalized clean images.
        count: overlays of each input, drawn without replacement; all where there are fewer.
        batch_size: blends of a forward pass.
        seed: of the draw.

    Raises:
        UserError: there are no overlays.
    """
    if len(overlays) == 0:
        raise UserError("STRIP needs clean images to blend with")
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(overlays))
    answer = []
    for part in images.split(max(1, batch_size // count)):
        rows = torch.stack([torch.randperm(len(overlays), generator=generator)[:count] for _ in range(len(part))])
        blends = 0.5 * part[:, None] + 0.5 * overlays[rows.to(overlays.device)].to(part)
        # The entropy is over the classes of each blend; its mean over the blends comes after.
        answer.append(_entropy(network(blends.flatten(0, 1))).view(len(part), count).mean(1))
    return torch.cat(answer)


def _entropy(logits: Tensor) -> Tensor:
    return torch.special.entr(logits.double().softmax(-1)).sum(-1)


def strip(
    network: nn.Module,
    images: Tensor,
    clean: Tensor,
    *,
    false_alarms: float = 0.05,
    count: int = 64,
    seed: int = 0,
) -> Strip:
    """Flag inputs that keep their class when blended.

    Args:
        network: classifier of normalized images, in evaluation mode.
        images: ``(n, channels, height, width)`` normalized inputs to judge.
        clean: ``(m, channels, height, width)`` normalized clean images: one half gives the threshold, the other the
            overlays.
        false_alarms: share of clean inputs that may be flagged; the threshold is this quantile.
        count: overlays of each input.
        seed: of the draws.

    Raises:
        UserError: fewer than four clean images.
    """
    started = time.perf_counter()
    if len(clean) < 4:
        raise UserError(f"STRIP needs at least 4 clean images, better 100; got {len(clean)}")
    overlays, inputs = clean[::2], clean[1::2]
    usual = blend_entropies(network, inputs, overlays, count=count, seed=seed)
    threshold = float(torch.quantile(usual, false_alarms))
    entropies = blend_entropies(network, images, overlays, count=count, seed=seed + 1)
    return Strip(entropies, threshold, entropies < threshold, time.perf_counter() - started)
