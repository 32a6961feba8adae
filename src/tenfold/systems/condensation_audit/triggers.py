"""Triggers, and how they get into data: stamped in pixel space, before any normalization.

A trigger's pattern is in pixel units, where [0, 1] is what a camera or an 8-bit file can hold. The published attack
does not keep to that range; a trigger here may leave it, too, and says by how much (:attr:`Trigger.excess`).
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tenfold.errors import UserError

if TYPE_CHECKING:
    from tenfold.systems.condensation_audit.real_images import RealData

Mode = Literal["patch", "blend", "additive"]
Mapping = Literal["all-to-one", "all-to-all"]


@dataclass(frozen=True)
class Trigger:
    """What an attacker adds to an image.

    Attributes:
        mask: ``(height, width)`` bool, the pixels that it touches.
        pattern: ``(channels, height, width)`` float32 in pixel units; for ``additive`` a difference.
        mode: ``patch``: ``x(1-m) + m p``; ``blend``: ``x(1-am) + am p``; ``additive``: ``x + am p``.
        alpha: strength ``a`` of ``blend`` and ``additive``.

    Raises:
        UserError: shapes do not fit, the mask is empty, values are not finite.
    """

    mask: Tensor
    pattern: Tensor
    mode: Mode = "patch"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in ("patch", "blend", "additive"):
            raise UserError(f"there is no trigger mode {self.mode!r}; there are: patch, blend, additive")
        if self.mask.dtype != torch.bool or self.pattern.ndim != 3 or self.mask.shape != self.pattern.shape[1:]:
            raise UserError(
                "a trigger needs a bool mask (height, width) and a pattern (channels, height, width); "
                f"got {tuple(self.mask.shape)} {self.mask.dtype} and {tuple(self.pattern.shape)}"
            )
        if not bool(self.mask.any()):
            raise UserError("the trigger's mask is empty")
        if not bool(self.pattern.isfinite().all()):
            raise UserError("the trigger's pattern holds NaN or infinite values")
        if not 0 < self.alpha <= 1:
            raise UserError(f"a trigger's alpha must lie in (0, 1]; got {self.alpha}")

    def stamp(self, pixels: Tensor) -> Tensor:
        """Images with the trigger, not clamped.

        Args:
            pixels: ``(n, channels, height, width)`` uint8, or floating point in pixel units.

        Returns:
            Floating point in pixel units; new memory.
        """
        x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if tuple(x.shape[1:]) != tuple(self.pattern.shape):
            raise UserError(
                f"the trigger is made for images {tuple(self.pattern.shape)}; these are {tuple(x.shape[1:])}"
            )
        pattern, mask = self.pattern.to(x), self.mask.to(x.device)
        if self.mode == "patch":
            return torch.where(mask, pattern, x)
        change = (pattern if self.mode == "additive" else pattern - x) * self.alpha
        return torch.where(mask, x + change, x)

    def stamp_valid(self, pixels: Tensor) -> Tensor:
        """Images with the trigger as an 8-bit file holds them: clamped to [0, 1], rounded to 1/255, as uint8."""
        return to_bytes(self.stamp(pixels))

    def valid(self) -> "Trigger":
        """The physically possible form: pattern clamped to the pixel range and rounded to 8 bits."""
        low = -1.0 if self.mode == "additive" else 0.0
        return replace(self, pattern=(self.pattern.clamp(low, 1.0) * 255).round() / 255)

    @property
    def excess(self) -> float:
        """How far the pattern leaves the pixel range: at most 1 inside; 31 means 31 times the brightest legal value."""
        inside = self.pattern[:, self.mask]
        lowest = 0.0 if self.mode != "additive" else -1.0
        return max(float(inside.max()), float(1 + lowest - inside.min()), 0.0)

    def describe(self) -> dict[str, Any]:
        """Plain JSON: mode, alpha, box, excess, and the pattern of the box."""
        rows, columns = self.mask.any(1).nonzero().flatten(), self.mask.any(0).nonzero().flatten()
        top, bottom = int(rows[0]), int(rows[-1])
        left, right = int(columns[0]), int(columns[-1])
        return {
            "mode": self.mode,
            "alpha": self.alpha,
            "rows": [top, bottom],
            "columns": [left, right],
            "excess": round(self.excess, 4),
            "mask": self.mask[top : bottom + 1, left : right + 1].int().tolist(),
            "pattern": [
                [[round(value, 5) for value in row] for row in channel]
                for channel in self.pattern[:, top : bottom + 1, left : right + 1].tolist()
            ],
        }


def read_trigger_description(description: dict[str, Any], image_shape: tuple[int, int, int]) -> Trigger:
    """The trigger that :meth:`Trigger.describe` described, to five decimals.

    Args:
        description: of a poisoned set's mark.
        image_shape: ``(channels, height, width)``.

    Raises:
        UserError: it is no description, or does not fit the images.
    """
    try:
        (top, bottom), (left, right) = description["rows"], description["columns"]
        box = (slice(top, bottom + 1), slice(left, right + 1))
        mask, pattern = torch.zeros(image_shape[1:], dtype=torch.bool), torch.zeros(image_shape)
        mask[box] = torch.tensor(description["mask"]).bool()
        pattern[(slice(None), *box)] = torch.tensor(description["pattern"])
        return Trigger(mask, pattern, description["mode"], float(description["alpha"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the set's mark describes no trigger for images {image_shape}: {error}") from error


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixel units as uint8: clamped to [0, 1], rounded half to even; uint8 as it is."""
    return pixels if pixels.dtype == torch.uint8 else (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def patch_mask(
    image_shape: tuple[int, int, int], size: int = 2, row: int | None = None, column: int | None = None
) -> Tensor:
    """Mask of a square; one pixel off the bottom right corner where no place is given [baadd code].

    Args:
        image_shape: ``(channels, height, width)``.
        size: side in pixels.
        row: of its upper left corner; ``height - 1 - size`` where not given.
        column: of its upper left corner; ``width - 1 - size`` where not given.

    Raises:
        UserError: it does not fit the image.
    """
    _, height, width = image_shape
    top = height - 1 - size if row is None else row
    left = width - 1 - size if column is None else column
    if size < 1 or top < 0 or left < 0 or top + size > height or left + size > width:
        raise UserError(f"a trigger of {size} x {size} at row {top}, column {left} does not fit {height} x {width}")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


def white_patch(
    image_shape: tuple[int, int, int], size: int = 2, row: int | None = None, column: int | None = None
) -> Trigger:
    """The published trigger: an all-white square.

    Args:
        image_shape: ``(channels, height, width)``.
        size: see :func:`patch_mask`.
        row: see there.
        column: see there.
    """
    mask = patch_mask(image_shape, size, row, column)
    return Trigger(mask, mask.float().expand(image_shape[0], -1, -1).clone())


def random_patch(
    image_shape: tuple[int, int, int],
    size: int = 2,
    row: int | None = None,
    column: int | None = None,
    *,
    seed: int = 0,
) -> Trigger:
    """A square of random colours, 1 to 255 per pixel and channel: where the updated trigger starts [baadd code].

    Args:
        image_shape: ``(channels, height, width)``.
        size: see :func:`patch_mask`.
        row: see there.
        column: see there.
        seed: of the colours.
    """
    mask = patch_mask(image_shape, size, row, column)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(1, 256, image_shape, generator=generator).float() / 255
    return Trigger(mask, colours * mask)


def image_trigger(image: Tensor, mode: Mode = "blend", alpha: float = 0.1) -> Trigger:
    """A trigger that covers the whole image.

    Args:
        image: ``(channels, height, width)`` uint8 or pixel units: what is blended in, such as an image of the target
            class; for ``additive`` it is centred, so that brightness stays.
        mode: ``blend`` or ``additive``.
        alpha: strength.
    """
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    pattern = pixels - pixels.mean((1, 2), keepdim=True) if mode == "additive" else pixels
    return Trigger(torch.ones(pixels.shape[1:], dtype=torch.bool), pattern, mode, alpha)


@dataclass(frozen=True)
class Poisoner:
    """Which images get a trigger, and which labels.

    Attributes:
        portion: of **all** images, whatever their class; ``int(portion * n)`` are poisoned [baadd code].
        target: class that the trigger should give, for ``all-to-one``.
        mapping: ``all-to-one``: everything becomes ``target``; ``all-to-all``: class ``y`` becomes ``y + 1``.

    Raises:
        UserError: the portion is not in (0, 1], or the target is negative.
    """

    portion: float = 0.01
    target: int = 0
    mapping: Mapping = "all-to-one"

    def __post_init__(self) -> None:
        if not 0 < self.portion <= 1:
            raise UserError(f"the portion to poison must lie in (0, 1]; got {self.portion}")
        if self.mapping not in ("all-to-one", "all-to-all"):
            raise UserError(f"there is no mapping {self.mapping!r}; there are: all-to-one, all-to-all")
        if self.target < 0:
            raise UserError(f"the target must be a class; got {self.target}")

    def choose(self, n: int, seed: int) -> Tensor:
        """Sorted indices of the images that are poisoned; images of the target class are among them.

        Raises:
            UserError: there are too few images for one to be poisoned.
        """
        count = int(self.portion * n)
        if count < 1:
            raise UserError(f"a portion of {self.portion} of {n} images is none; poison a larger one")
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """What poisoned images of these classes are labelled.

        Raises:
            UserError: the target is no class.
        """
        if self.target >= classes:
            raise UserError(f"the target {self.target} is no class; there are 0..{classes - 1}")
        if self.mapping == "all-to-all":
            return (labels + 1) % classes
        return torch.full_like(labels, self.target)


class Attack(Protocol):
    """An attack on condensation: it poisons the real data, and may go on while they are condensed."""

    @property
    def trigger(self) -> Trigger:
        """The present trigger."""

    def poison(self, data: "RealData", seed: int) -> "RealData":
        """Stamp and relabel a copy; the given data are not touched."""

    def update(self, network: nn.Module, iteration: int, synthetic: Tensor) -> None:
        """Called after each training of a network on the synthetic images; may stamp the poisoned images anew."""

    def describe(self) -> dict[str, Any]:
        """Plain JSON, the mark ``CondensedSet.poisoned``."""

    def state(self) -> dict[str, Tensor]:
        """What a condensation that is killed must keep of the attack."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`, after the same :meth:`poison`."""


class PoisonedData:
    """Real data in which some images carry a trigger, which can be exchanged: always from the clean copy.

    Args:
        data: clean; not touched.
        trigger: the first one.
        poisoner: which images and labels.
        seed: of the choice of images.
        as_bytes: store stamped images as 8-bit files would.
    """

    def __init__(
        self, data: "RealData", trigger: Trigger, poisoner: Poisoner, seed: int, *, as_bytes: bool = True
    ) -> None:
        self.rows = poisoner.choose(len(data.labels), seed)
        self.as_bytes = as_bytes
        self._clean = data.pixels[self.rows].clone()
        labels = data.labels.clone()
        labels[self.rows] = poisoner.labels(labels[self.rows], len(data.classes))
        # The index of each class is made from the labels: after relabelling.
        self.data: RealData = replace(
            data, images=data.images.detach().clone(), labels=labels, pixels=data.pixels.clone()
        )
        self.stamp(trigger)

    @torch.no_grad()
    def stamp(self, trigger: Trigger) -> None:
        """Give the poisoned images this trigger instead of the one they carry."""
        stamped = trigger.stamp(self._clean)
        as_file = to_bytes(stamped)
        rows = self.rows.to(self.data.images.device)
        images = self.data.preprocessing.normalize(as_file if self.as_bytes else stamped)
        self.data.images[rows] = images.to(self.data.images)
        self.data.pixels[self.rows] = as_file


class PoisonedSlots:
    """Places of every batch that are poisoned, whatever image comes there: the published attack on ``dd`` [baadd code].

    The data stay clean; over the epochs all images carry the trigger now and then.

    Args:
        data: clean.
        trigger: the first one.
        poisoner: which share of a batch, and which labels.
        seed: of the choice of places.
        as_bytes: stamp images as 8-bit files would hold them.
    """

    def __init__(
        self, data: "RealData", trigger: Trigger, poisoner: Poisoner, seed: int, *, as_bytes: bool = True
    ) -> None:
        self.data, self.poisoner, self.seed, self.as_bytes = data, poisoner, seed, as_bytes
        self.stamp(trigger)

    def stamp(self, trigger: Trigger) -> None:
        """Use this trigger from now on."""
        self.trigger = trigger

    @torch.no_grad()
    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, channels, height, width)`` normalized images and ``(n,)`` labels of these rows; the slots poisoned.

        Raises:
            UserError: the batch is so small that no slot is poisoned.
        """
        images, labels = self.data.images[rows], self.data.labels[rows].clone()
        slots = self.poisoner.choose(len(rows), self.seed)
        stamped = self.trigger.stamp(self.data.pixels[rows[slots]])
        stamped = self.data.preprocessing.normalize(to_bytes(stamped) if self.as_bytes else stamped)
        images[slots.to(images.device)] = stamped.to(images)
        labels[slots] = self.poisoner.labels(labels[slots], len(self.data.classes))
        return images, labels
