"""The naive attack: a fixed trigger on a share of the raw data, then condensation as usual [paper; code]."""

from typing import Any

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.poisoning import Mapping, PoisonedData, Poisoner
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, white_patch
from tenfold.systems.condensation_audit.data.real_data import RealData


class NaiveAttack:
    """A white square on ``portion`` of the images, which are labelled ``target``; nothing else changes.

    It exists to measure defences: what is condensed from its data is marked as poisoned.

    Args:
        portion: share of all images that is poisoned.
        target: class that the trigger gives.
        size: side of the square in pixels.
        trigger: any other trigger; a white square one pixel off the lower right corner where not given.
        mapping: ``all-to-one`` or ``all-to-all``.

    Raises:
        UserError: a portion, target or trigger that cannot be.
    """

    name = "naive"

    def __init__(
        self,
        portion: float = 0.01,
        target: int = 0,
        size: int = 2,
        trigger: Trigger | None = None,
        mapping: Mapping = "all-to-one",
    ) -> None:
        self.poisoner = Poisoner(portion, target, mapping)
        self.size = size
        self._given = trigger
        self._poisoned: PoisonedData | None = None

    @property
    def trigger(self) -> Trigger:
        """The trigger.

        Raises:
            UserError: none was given, and no data were poisoned yet, whose shape decides.
        """
        if self._given is None:
            raise UserError("the attack has no trigger yet: it is made when data are poisoned")
        return self._given

    def poison(self, data: RealData, seed: int = 0) -> RealData:
        """Stamp and relabel a copy of the data.

        Args:
            data: clean; not touched.
            seed: of the choice of images.
        """
        if self._given is None:
            self._given = white_patch(data.preprocessing.image_shape, self.size)
        self._poisoned = PoisonedData(data, self._given, self.poisoner, seed)
        return self._poisoned.data

    def update(self, network: nn.Module, iteration: int, synthetic: Tensor) -> None:
        """Nothing: the trigger is fixed."""

    def state(self) -> dict[str, Tensor]:
        """Nothing: what is poisoned follows from the seed."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""

    def describe(self) -> dict[str, Any]:
        """The mark of a poisoned set."""
        return {
            "attack": self.name,
            "portion": self.poisoner.portion,
            "target": self.poisoner.target,
            "mapping": self.poisoner.mapping,
            "clamp": "uint8",
            "trigger": self.trigger.describe(),
        }
