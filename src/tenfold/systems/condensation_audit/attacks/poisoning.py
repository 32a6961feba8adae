"""How a trigger gets into data: which images or slots of batches are stamped, and what they are labelled."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, to_bytes
from tenfold.systems.condensation_audit.data.real_data import RealData

Mapping = Literal["all-to-one", "all-to-all"]


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

    def poison(self, data: RealData, seed: int) -> RealData:
        """Stamp and relabel a copy; the given data are not touched."""

    def update(self, network: nn.Module, iteration: int, synthetic: Tensor) -> None:
        """Called after each training of a network on the synthetic images; may stamp the poisoned images anew."""

    def describe(self) -> dict[str, Any]:
        """Plain JSON, the mark ``CondensedSet.poisoned``."""

    def state(self) -> dict[str, Tensor]:
        """What a condensation that is killed must keep of the attack."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`, after the same `poison`."""


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
        self, data: RealData, trigger: Trigger, poisoner: Poisoner, seed: int, *, as_bytes: bool = True
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
        self, data: RealData, trigger: Trigger, poisoner: Poisoner, seed: int, *, as_bytes: bool = True
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
