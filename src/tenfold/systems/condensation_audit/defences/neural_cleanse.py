"""Neural Cleanse: for every class the smallest mask that turns everything into it; a backdoor's is much smaller.

For each class t, over images x and with the mask m in [0, 1] and the pattern p in the pixel range,

    minimise  CE(f((1 - m) x + m p), t) + lambda |m|_1

where lambda doubles after five good epochs (success of at least 98 %) and shrinks by 2^1.5 after five bad ones. All
classes are optimized in one batch. The anomaly index is one-sided: only masks **smaller** than the median are suspect.
Wang et al., IEEE S&P 2019.
"""

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.patch_scan import quick_copy


@dataclass(frozen=True)
class NeuralCleanse:
    """What Neural Cleanse found.

    Attributes:
        norms: ``(classes,)`` L1 norm of the smallest successful mask; infinite where there is none.
        anomalies: ``(classes,)`` how far the norm is below the median, in robust deviations; -inf where there is none.
        masks: ``(classes, height, width)`` the masks; zeros where there is none.
        patterns: ``(classes, channels, height, width)`` pixel units.
        threshold: of the anomalies.
        seconds: wall-clock time.
    """

    norms: np.ndarray
    anomalies: np.ndarray
    masks: Tensor
    patterns: Tensor
    threshold: float
    seconds: float

    @property
    def score(self) -> float:
        """The largest anomaly."""
        return float(self.anomalies.max())

    @property
    def flagged(self) -> list[int]:
        """Classes whose mask is abnormally small."""
        return [int(t) for t in np.flatnonzero(self.anomalies > self.threshold)]

    def trigger(self, target: int) -> Trigger | None:
        """The mask and pattern of a class as a trigger, mask thresholded at one half; ``None`` where none succeeded."""
        mask = self.masks[target] > 0.5
        return Trigger(mask, self.patterns[target]) if bool(mask.any()) else None


def neural_cleanse(
    network: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    *,
    epochs: int = 50,
    batch_size: int = 32,
    steps_per_epoch: int = 5,
    learning_rate: float = 0.1,
    start: float = 1e-3,
    patience: int = 5,
    success: float = 0.98,
    threshold: float = 2.0,
    seed: int = 0,
) -> NeuralCleanse:
    """Search for the smallest universal mask of every class.

    Args:
        network: any classifier of normalized images; not changed.
        pixels: ``(n, channels, height, width)`` uint8 clean images.
        preprocessing: what the network expects.
        epochs: of the search.
        batch_size: images of a step, for each class.
        steps_per_epoch: steps between two changes of lambda.
        learning_rate: of Adam (betas .5, .9).
        start: first lambda.
        patience: epochs before lambda changes.
        success: share of images that a mask must turn.
        threshold: of the anomaly index.
        seed: of the order of the images and the first patterns.

    Raises:
        UserError: there are no images, or they do not fit.
    """
    started = time.perf_counter()
    if len(pixels) == 0 or tuple(pixels.shape[1:]) != preprocessing.image_shape:
        raise UserError(f"the search needs images {preprocessing.image_shape}; got {tuple(pixels.shape)}")
    network = quick_copy(copy.deepcopy(network))
    device = next(network.parameters(), torch.zeros(())).device
    generator = torch.Generator().manual_seed(seed)
    images = pixels.to(device).float() / 255
    with torch.inference_mode():
        classes = network(preprocessing.normalize(images[:2])).shape[1]
    channels, height, width = preprocessing.image_shape
    raw_mask = (torch.randn(classes, 1, height, width, generator=generator) - 1).to(device).requires_grad_()
    raw_pattern = torch.randn(classes, channels, height, width, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam([raw_mask, raw_pattern], lr=learning_rate, betas=(0.5, 0.9))
    weight = torch.full((classes,), start, device=device)
    good, bad = torch.zeros(2, classes, dtype=torch.int64, device=device)
    norms = torch.full((classes,), torch.inf, device=device)
    masks, patterns = torch.zeros_like(raw_mask), torch.zeros_like(raw_pattern)
    targets = torch.arange(classes, device=device).repeat_interleave(min(batch_size, len(images)))
    for _ in range(epochs):
        hits = torch.zeros(classes, device=device)
        for _ in range(steps_per_epoch):
            rows = torch.randperm(len(images), generator=generator)[:batch_size].to(device)
            mask, pattern = raw_mask.sigmoid(), raw_pattern.sigmoid()
            mixed = (1 - mask)[:, None] * images[rows] + (mask * pattern)[:, None]
            logits = network(preprocessing.normalize(mixed.flatten(0, 1)))
            loss = functional.cross_entropy(logits, targets, reduction="none").view(classes, -1).mean(1)
            hits += (logits.detach().argmax(1) == targets).float().view(classes, -1).mean(1) / steps_per_epoch
            sizes = mask.abs().flatten(1).sum(1)
            optimizer.zero_grad()
            (loss + weight * sizes).sum().backward()
            optimizer.step()
        with torch.no_grad():
            sizes = raw_mask.sigmoid().flatten(1).sum(1)
            passed = hits >= success
            better = passed & (sizes < norms)
            norms = torch.where(better, sizes, norms)
            masks[better], patterns[better] = raw_mask.sigmoid()[better], raw_pattern.sigmoid()[better]
            good, bad = torch.where(passed, good + 1, 0), torch.where(passed, 0, bad + 1)
            weight = torch.where(good >= patience, weight * 2, torch.where(bad >= patience, weight / 2**1.5, weight))
            good, bad = torch.where(good >= patience, 0, good), torch.where(bad >= patience, 0, bad)
    found = norms.double().cpu().numpy()
    return NeuralCleanse(
        norms=found,
        anomalies=small_norm_anomalies(found),
        masks=masks[:, 0].detach().cpu(),
        patterns=patterns.detach().cpu(),
        threshold=threshold,
        seconds=time.perf_counter() - started,
    )


def small_norm_anomalies(norms: np.ndarray) -> np.ndarray:
    """``(median - norm) / (1.4826 MAD)`` among the finite norms; -inf for the others, and where there are fewer than 3.

    Args:
        norms: ``(classes,)``; infinite where no mask succeeded.
    """
    finite = np.isfinite(norms)
    answer = np.full(norms.shape, -np.inf)
    if finite.sum() >= 3:
        median = np.median(norms[finite])  # of an even number the mean of the middle two, unlike torch.median
        spread = 1.4826 * np.median(np.abs(norms[finite] - median))
        answer[finite] = (median - norms[finite]) / max(float(spread), 1e-3)
    return answer
