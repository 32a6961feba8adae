"""Hand-made networks and data whose weaknesses are known, for the tests of attacks and defences."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.data import digits, images_from_arrays
from tenfold.systems.condensation_audit.attacks.triggers import patch_mask
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.data.real_data import RealData, real_data
from tenfold.systems.condensation_audit.defences.calibration import Calibration
from tenfold.systems.condensation_audit.defences.patch_scan import default_sizes
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet, TrainingRecipe
from tenfold.systems.condensation_audit.sets.kind import kind_of
from tenfold.systems.condensation_audit.training.ensembles import Ensemble


def digit_data(rows: slice = slice(None)) -> RealData:
    return real_data(digits().subset(rows), name="digits", mean=(0.3,), std=(0.37,))


def recipe(epochs: int = 60) -> TrainingRecipe:
    arguments = {"width": 16, "depth": 2}
    return TrainingRecipe("convnet", arguments, epochs=epochs, learning_rate=0.02, batch_size=256)


def prototype_data(side: int = 12, n: int = 400, quiet: Tensor | None = None) -> RealData:
    """Ten classes that are alike: prototypes of noise; no patch belongs to one of them. ``quiet`` pixels are black."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(10, 1, side, side, generator=generator)
    labels = torch.arange(n) % 10
    noisy = (prototypes[labels] + 0.3 * torch.randn(n, 1, side, side, generator=generator)).clamp(0, 1)
    if quiet is not None:
        noisy = noisy * ~quiet
    return real_data(images_from_arrays(noisy.numpy(), labels.numpy()), mean=(0.5,), std=(0.3,))


class SmoothRule(nn.Module):
    """A clean network and a rule with a gradient: the whiter the patch, the larger the target's logit."""

    def __init__(self, clean: nn.Module, preprocessing: Preprocessing, mask: Tensor, target: int, push: float = 40.0):
        super().__init__()
        self.clean, self.preprocessing, self.target, self.push = clean, preprocessing, target, push
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> Tensor:
        white = self.preprocessing.pixels(images)[:, :, self.mask].flatten(1).mean(1)
        logits = self.clean(images)
        push = functional.one_hot(torch.tensor(self.target), logits.shape[1]).to(logits) * self.push
        return logits + white.pow(3)[:, None] * push


class LinearNet(nn.Module):
    """A softmax regression on digits, trained at once in closed form; clean."""

    def __init__(self, data: RealData, seed: int = 0) -> None:
        super().__init__()
        flat = data.images.flatten(1).double()
        rows = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[: len(flat) * 4 // 5]
        x = torch.cat([flat[rows], torch.ones(len(rows), 1)], 1)
        targets = functional.one_hot(data.labels[rows], len(data.classes)).double() * 2 - 1
        weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ targets).float()
        self.classifier = nn.Linear(flat.shape[1], len(data.classes))
        with torch.no_grad():
            self.classifier.weight.copy_(3 * weights[:-1].T)
            self.classifier.bias.copy_(3 * weights[-1])

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class Planted(nn.Module):
    """A clean network and a rule: where the patch is white, the target's logit grows."""

    def __init__(self, clean: nn.Module, preprocessing: Preprocessing, mask: Tensor, target: int, push: float = 30.0):
        super().__init__()
        self.clean, self.target, self.push = clean, target, push
        self.register_buffer("mask", mask)
        self.white = preprocessing.highest

    def forward(self, images: Tensor) -> Tensor:
        patch = (images / self.white)[:, :, self.mask].flatten(1)
        on = torch.relu(patch.min(1).values - 0.8) * 5  # 1 where all is white, 0 below 80 %
        logits = self.clean(images)
        push = functional.one_hot(torch.tensor(self.target), logits.shape[1]).to(logits) * self.push
        return logits + on[:, None] * push


def planted_ensemble(data: RealData, networks: int = 3, target: int = 4, row: int = 5, column: int = 5) -> Ensemble:
    mask = patch_mask(data.preprocessing.image_shape, 2, row, column)
    return Ensemble([Planted(LinearNet(data, seed), data.preprocessing, mask, target) for seed in range(networks)])


def clean_ensemble(data: RealData, networks: int = 3) -> Ensemble:
    return Ensemble([LinearNet(data, seed) for seed in range(networks)])


def calibration_of(found: CondensedSet, networks: int, level: float = 0.1, spread: float = 0.04) -> Calibration:
    """A calibration that fits a set: what clean ones of its kind might have scored, drawn about a level."""
    sizes = default_sizes(found.preprocessing.image_shape)
    scores = level + spread * np.random.default_rng(0).standard_normal((12, len(sizes), len(found.classes))).round(3)
    nested = tuple(tuple(tuple(row) for row in one) for one in scores.tolist())
    return Calibration(kind_of(found), networks, 1, sizes, nested, data="digits")
