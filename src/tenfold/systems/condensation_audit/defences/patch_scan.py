"""The ensemble patch scan: paint small patches everywhere, and see whether one class answers to one place.

Networks that were trained on the same small set share its backdoor, but not their adversarial weaknesses. So for a
patch of every size, colour and place, and every class t,

    A[t, place, colour] = mean over networks of the share of images of other classes that become t
                          (images that are t without the patch do not count)
    Score_t = max of A over places and colours
    AI_t    = (Score_t - median of the scores) / (1.4826 * median absolute deviation of the scores)

The mean over networks comes before the maximum: it removes what is peculiar to one network. Forward passes only. All
cells are screened with a part of the images, the best of each class are measured on all.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, patch_mask
from tenfold.systems.condensation_audit.data.partition import spread_rows
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.networks.halving_pool import HalvingPool
from tenfold.systems.condensation_audit.training.ensembles import Ensemble

Colour = tuple[float, ...]

PROVISIONAL = (3.2, 0.2)
"""AI and score above which a class is suspect where nothing was calibrated."""

GREYS = (0.0, 0.5, 1.0)
"""Levels of the default colours: on RGB also the six pure ones."""


@dataclass(frozen=True)
class Cell:
    """A patch: where, how large, which colour, and what it does.

    Attributes:
        target: class that it drives.
        size: side in pixels.
        row: of its upper left corner.
        column: of its upper left corner.
        colour: pixel units, one value per channel.
        score: mean share of images that it turns to the class.
    """

    target: int
    size: int
    row: int
    column: int
    colour: Colour
    score: float

    def trigger(self, image_shape: tuple[int, int, int]) -> Trigger:
        """The patch as a trigger."""
        mask = patch_mask(image_shape, self.size, self.row, self.column)
        return Trigger(mask, torch.tensor(self.colour).view(-1, 1, 1) * mask)


@dataclass(frozen=True)
class PatchScan:
    """What a scan found.

    Attributes:
        sizes: of the patches.
        scores: ``(sizes, classes)`` best score of each class.
        anomalies: ``(sizes, classes)`` AI of each score among the classes.
        cells: for each size, the best cell of each class.
        maps: ``(sizes, classes, rows, columns)`` screened score at each upper left corner, best colour; NaN where no
            patch was painted.
        evaluations: forward passes of single images.
        seconds: wall-clock time.
    """

    sizes: tuple[int, ...]
    scores: np.ndarray
    anomalies: np.ndarray
    cells: tuple[tuple[Cell, ...], ...]
    maps: np.ndarray
    evaluations: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def evidence(self) -> np.ndarray:
        """``(sizes, classes)`` `provisional_evidence` of the scores."""
        return provisional_evidence(self.scores)

    @property
    def strongest(self) -> float:
        """The largest evidence of any size and class."""
        return float(self.evidence.max())

    @property
    def anomaly(self) -> float:
        """The AI of the strongest evidence."""
        return float(self.anomalies.flat[self.evidence.argmax()])

    @property
    def score(self) -> float:
        """The score of the strongest evidence."""
        return float(self.scores.flat[self.evidence.argmax()])

    def suspects(self, count: int = 2, evidence: np.ndarray | None = None) -> list[tuple[Cell, float]]:
        """The cells of the strongest evidence with their AI, each class once.

        Args:
            count: classes at most.
            evidence: ``(sizes, classes)`` of a calibration; `evidence` where not given.
        """
        order = np.argsort(-(self.evidence if evidence is None else evidence), axis=None)
        found: dict[int, tuple[Cell, float]] = {}
        for flat in order:
            size, target = np.unravel_index(flat, self.anomalies.shape)
            found.setdefault(int(target), (self.cells[size][target], float(self.anomalies[size, target])))
        return list(found.values())[:count]


def anomaly_index(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance of each value above the median, in robust standard deviations (1.4826 MAD).

    The median of an even number is the mean of the two middle values. Where more than half of the values are equal, the
    deviation is 0; it is then taken as 0.01, the resolution of shares counted on a hundred images.
    """
    values = np.asarray(values, dtype=np.float64)
    median = np.median(values)
    return (values - median) / max(1.4826 * float(np.median(np.abs(values - median))), 0.01)


def provisional_evidence(scores: np.ndarray) -> np.ndarray:
    """``min(AI / 3.2, Score / .2)`` of ``(sizes, classes)`` scores: above 1 both exceed the provisional thresholds."""
    anomalies = np.stack([anomaly_index(row) for row in scores])
    return np.minimum(anomalies / PROVISIONAL[0], scores / PROVISIONAL[1])


def default_sizes(image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Sides of the patches: 1 to 4 pixels at 32 x 32, scaled with larger images; 2 and 3, or 1 and 2, on small ones."""
    side = min(image_shape[1:])
    if side < 12:
        return tuple(range(1, min(side, 2) + 1))
    return tuple(max(1, round(k * side / 32)) for k in (1, 2, 3, 4)) if side >= 24 else (2, 3)


def default_stride(image_shape: tuple[int, int, int], size: int) -> int:
    """Stride of the places of a patch: 1 below 24 pixels, else a sixteenth of the side, and never above the patch's.

    So a patch at any place is overlapped by a quarter at least.
    """
    side = min(image_shape[1:])
    return 1 if side < 24 else max(1, min(size, side // 16))


def default_colours(channels: int) -> tuple[Colour, ...]:
    """Black, grey and white; for three channels also red, green, blue, cyan, magenta and yellow."""
    greys = [(level,) * channels for level in GREYS]
    return tuple(greys + [c for c in product((0.0, 1.0), repeat=3) if len(set(c)) > 1] if channels == 3 else greys)


def scan_patches(
    ensemble: Ensemble,
    pixels: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    sizes: Sequence[int] | None = None,
    colours: Sequence[Colour] | None = None,
    stride: int | None = None,
    screen: int = 64,
    keep: int = 6,
    batch_size: int = 64,
    classes: int | None = None,
) -> PatchScan:
    """Scan networks for classes that a small patch drives.

    Args:
        ensemble: networks trained on the set; one network, for a model that someone else trained.
        pixels: ``(n, channels, height, width)`` uint8 clean images; not those that a verdict's success is measured on.
        labels: ``(n,)`` their classes.
        preprocessing: what the networks expect.
        sizes: sides of the patches; `default_sizes` where not given.
        colours: in pixel units; `default_colours` where not given.
        stride: of the places that are screened; between them the best of each class are refined, down to one pixel;
            `default_stride` where not given.
        screen: images that all cells are screened with, spread evenly over the classes; all where there are fewer.
        keep: best cells of each class and size that are measured on all images.
        batch_size: images of a forward pass on a CPU; small batches stay in its caches.
        classes: number of classes; that of the networks' logits where not given.

    Raises:
        UserError: images, labels and preprocessing do not fit, or a patch is larger than the image.
    """
    started = time.perf_counter()
    shape = preprocessing.image_shape
    if tuple(pixels.shape[1:]) != shape or len(pixels) != len(labels) or len(pixels) == 0:
        raise UserError(f"the scan needs images {shape} with one label each; got {tuple(pixels.shape)}")
    sizes = tuple(sizes) if sizes is not None else default_sizes(shape)
    colours = tuple(colours) if colours is not None else default_colours(shape[0])
    if not sizes or min(sizes) < 1 or max(sizes) > min(shape[1:]):
        raise UserError(f"patches of {sizes} pixels do not fit images of {shape[1:]}")
    networks = [quick_copy(ensemble.member(k)) for k in range(len(ensemble))]
    painter = _Painter(networks, pixels, labels, preprocessing, batch_size)
    count = classes or painter.classes
    few = spread_rows(labels, screen)
    screened = painter.restricted(few)
    scores = np.zeros((len(sizes), count))
    maps = np.full((len(sizes), count, *shape[1:]), np.nan)
    cells: list[tuple[Cell, ...]] = []
    strides = [default_stride(shape, size) if stride is None else stride for size in sizes]
    for number, (size, step) in enumerate(zip(sizes, strides, strict=True)):
        places = _places(shape, size, step)
        trials = [(size, row, column, colour) for row, column in places for colour in colours]
        values = screened.measure(trials)  # (trials, classes)
        best = values.reshape(len(places), len(colours), -1).max(1)
        for (row, column), value in zip(places, best, strict=True):
            maps[number, :, row, column] = value[:count]
        finalists = _refined(_best(trials, values, keep), screened, keep, step, shape)
        final = painter.measure(finalists)
        chosen = final.argmax(0)
        scores[number] = final.max(0)[:count]
        cells.append(
            tuple(
                _cell(target, finalists[chosen[target]], float(final[chosen[target], target]))
                for target in range(count)
            )
        )
    return PatchScan(
        sizes=sizes,
        scores=scores,
        anomalies=np.stack([anomaly_index(row) for row in scores]),
        cells=tuple(cells),
        maps=maps,
        evaluations=painter.evaluations + screened.evaluations,
        seconds=time.perf_counter() - started,
        settings={
            "strides": strides,
            "screen": len(few),
            "keep": keep,
            "images": len(pixels),
            "networks": len(networks),
        },
    )


Trial = tuple[int, int, int, Colour]


def _cell(target: int, trial: Trial, score: float) -> Cell:
    size, row, column, colour = trial
    return Cell(target, size, row, column, colour, score)


class _Painter:
    """Paints patches on normalized images and counts what becomes of them."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        pixels: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        batch_size: int,
    ) -> None:
        parameter = next(networks[0].parameters(), torch.zeros(()))
        self.networks, self.preprocessing, self.device = networks, preprocessing, parameter.device
        self.batch_size = batch_size if self.device.type == "cpu" else 8192
        self.pixels = pixels.to(self.device).float() / 255
        self.labels = labels.to(self.device)
        self.evaluations = 0
        # Without whitening a patch is painted on normalized images; whitening mixes all pixels.
        self.white = preprocessing.zca is not None
        self.base = self.pixels if self.white else preprocessing.normalize(self.pixels)
        self.before = self._predict(self.base)  # (networks, n)
        self.classes = int(self._classes)

    def restricted(self, rows: Tensor) -> "_Painter":
        """The same with some of the images."""
        part = copy.copy(self)
        rows = rows.to(self.device)
        part.pixels, part.labels, part.base = self.pixels[rows], self.labels[rows], self.base[rows]
        part.before, part.evaluations = self.before[:, rows], 0
        return part

    @torch.inference_mode()
    def _predict(self, images: Tensor) -> Tensor:
        answers = []
        for network in self.networks:
            logits = torch.cat([network(part) for part in images.split(self.batch_size)])
            answers.append(logits.argmax(1))
        self._classes = logits.shape[1]
        self.evaluations += len(images) * len(self.networks)
        return torch.stack(answers)

    @torch.inference_mode()
    def measure(self, trials: Sequence[Trial]) -> np.ndarray:
        """``(trials, classes)`` mean over networks of the share of images of other classes that a patch turns."""
        n = len(self.base)
        others = torch.stack([self.labels != target for target in range(self.classes)], 1)  # (n, classes)
        counts = others.sum(0).clamp(min=1)
        turned_before = self._turned(self.before[:, None])  # (networks, 1, classes)
        at_once = max(1, self.batch_size // n)
        answer = []
        for start in range(0, len(trials), at_once):
            part = trials[start : start + at_once]
            images = self.base.repeat(len(part), 1, 1, 1)
            for number, (size, row, column, colour) in enumerate(part):
                images[number * n : (number + 1) * n, :, row : row + size, column : column + size] = self._value(colour)
            if self.white:
                images = self.preprocessing.normalize(images)
            turned = self._turned(self._predict(images).unflatten(1, (len(part), n)))
            answer.append(((turned - turned_before) / counts).mean(0))
        return torch.cat(answer).double().cpu().numpy()

    def _value(self, colour: Colour) -> Tensor:
        value = torch.tensor(colour, device=self.device).view(-1, 1, 1)
        if self.white:
            return value
        return self.preprocessing.normalize(value[None])[0]

    def _turned(self, predictions: Tensor) -> Tensor:
        """``(networks, trials, classes)`` images of other classes that are predicted as the class."""
        networks, trials, _ = predictions.shape
        offset = torch.arange(networks * trials, device=self.device).view(networks, trials, 1) * self.classes
        wrong = predictions != self.labels
        flat = (offset + predictions)[wrong]
        counts = torch.bincount(flat, minlength=networks * trials * self.classes)
        return counts.view(networks, trials, self.classes).double()


def _places(shape: tuple[int, int, int], size: int, stride: int) -> list[tuple[int, int]]:
    """Upper left corners, the last row and column always among them."""
    rows, columns = (sorted({*range(0, side - size + 1, stride), side - size}) for side in shape[1:])
    return list(product(rows, columns))


def _best(trials: Sequence[Trial], values: np.ndarray, keep: int) -> list[Trial]:
    """The best trials of each class, each once."""
    return [trials[number] for number in np.unique(np.argsort(-values, axis=0, kind="stable")[:keep])]


def _refined(best: list[Trial], screened: _Painter, keep: int, stride: int, shape: tuple[int, int, int]) -> list[Trial]:
    """Better places of the best trials: their neighbours at half the distance, again and again, down to one pixel."""
    while stride > 1:
        stride = (stride + 1) // 2
        around: dict[Trial, None] = {}
        for size, row, column, colour in best:
            for down, right in product((-stride, 0, stride), repeat=2):
                place = row + down, column + right
                if 0 <= place[0] <= shape[1] - size and 0 <= place[1] <= shape[2] - size:
                    around[(size, *place, colour)] = None
        trials = list(around)
        best = _best(trials, screened.measure(trials), keep)
    return best


def quick_copy(network: nn.Module) -> nn.Module:
    """The network for many forward passes: in evaluation mode, without gradients, poolings by two exchanged."""
    network = network.eval().requires_grad_(False)
    if next(network.parameters(), torch.zeros(())).device.type != "cpu":
        return network
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            plain = isinstance(child, nn.AvgPool2d) and not child.ceil_mode and child.divisor_override is None
            if plain and {child.kernel_size, child.stride} <= {2, (2, 2)} and child.padding in (0, (0, 0)):
                setattr(module, name, HalvingPool())
    return network
