"""DOORPING: the trigger is optimized again and again while the data are condensed [paper; update rule from the code].


    poison int(p n) images with a patch of random colours; label them t
    while condensing, after each training of a network on the synthetic images:
        keys   <- the k neurons of the penultimate layer with the largest incoming weight mass
        x      <- black image with the trigger alone
        a0     <- activations of the keys on x
        repeat at most 1000 times:                      # fresh Adam, lr .08, betas .9/.99
            loss <- mean squared (activations of the keys on x - alpha a0)
            stop if loss < 0.5
            step on the trigger's pixels
        stamp the poisoned images anew, from their clean copies

The published code never clamps the trigger: its pixels end far outside the range of any image. ``clamp="valid"``
projects them to the pixel range after every step, ``"uint8"`` also rounds them where they are stamped.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.poisoning import Mapping, PoisonedData, PoisonedSlots, Poisoner
from tenfold.systems.condensation_audit.attacks.trigger_update import Clamp, UpdateRecord, update_trigger
from tenfold.systems.condensation_audit.attacks.triggers import Trigger, random_patch
from tenfold.systems.condensation_audit.data.real_data import RealData


class Doorping:
    """The iteratively updated trigger; it exists to measure defences, and what it makes is marked as poisoned.

    Args:
        portion: share of the attacker's images that is poisoned.
        target: class that the trigger gives.
        size: side of the patch in pixels.
        trigger: where to start; a patch of random colours where not given.
        mapping: ``all-to-one`` or ``all-to-all``.
        clamp: ``none`` as published: the trigger leaves the pixel range; ``valid``: kept inside; ``uint8``: also
            rounded where it is stamped.
        topk: number of key neurons.
        layer: of the key neurons, see `find_key_neurons`.
        alpha: how many times the present activation is aimed at.
        steps: of one update, at most.
        learning_rate: of one update.
        official_sign: see `update_trigger`.
        ori: share of the data that the attacker holds; only these are condensed [inferred from the flag's name].
        slots: poison places of each batch instead of images, which ``dd`` alone can; where not given, ``dd`` does, as
            published.
        keep: keep the triggers of all updates in ``trajectory``.

    Raises:
        UserError: a setting that cannot be.
    """

    name = "doorping"

    def __init__(
        self,
        portion: float = 0.01,
        target: int = 0,
        size: int = 2,
        trigger: Trigger | None = None,
        mapping: Mapping = "all-to-one",
        *,
        clamp: Clamp = "none",
        topk: int = 1,
        layer: int = -2,
        alpha: float = 10.0,
        steps: int = 1000,
        learning_rate: float = 0.08,
        official_sign: bool = False,
        ori: float = 1.0,
        slots: bool | None = None,
        keep: bool = False,
    ) -> None:
        if clamp not in ("none", "valid", "uint8"):
            raise UserError(f"there is no clamp {clamp!r}; there are: none, valid, uint8")
        if not 0 < ori <= 1:
            raise UserError(f"the attacker's share of the data must lie in (0, 1]; got {ori}")
        self.poisoner = Poisoner(portion, target, mapping)
        self.size, self.clamp, self.ori, self.slots, self.keep = size, clamp, ori, slots, keep
        self.options: dict[str, Any] = {
            "topk": topk,
            "layer": layer,
            "alpha": alpha,
            "steps": steps,
            "learning_rate": learning_rate,
            "official_sign": official_sign,
        }
        self.history: list[UpdateRecord] = []
        self.trajectory: list[Trigger] = []
        self._given, self._current = trigger, trigger
        self._poisoned: PoisonedData | PoisonedSlots | None = None

    @property
    def trigger(self) -> Trigger:
        """The present trigger.

        Raises:
            UserError: none was given, and no data were poisoned yet, whose shape decides.
        """
        if self._current is None:
            raise UserError("the attack has no trigger yet: it is made when data are poisoned")
        return self._current

    def poisons_slots(self, method: str) -> bool:
        """Whether places of each batch are poisoned when a method condenses.

        Raises:
            UserError: they are asked for, and the method draws no whole batches.
        """
        if self.slots and method != "dd":
            raise UserError(f"slots of batches are poisoned in dd only, which draws whole batches; not in {method}")
        return method == "dd" if self.slots is None else self.slots

    def poison(self, data: RealData, seed: int = 0, *, slots: bool | None = None) -> RealData:
        """Stamp and relabel a copy of what the attacker holds; begins the attack anew.

        Args:
            data: clean; not touched.
            seed: of the choice of images and of the first colours.
            slots: poison places of each batch, see `batch`, and leave the data clean; as the attack says where
                not given.
        """
        if self.ori < 1:
            data = _share(data, self.ori, seed)
        self._current = self._given or random_patch(data.preprocessing.image_shape, self.size, seed=seed)
        self.history, self.trajectory = [], [self._current] if self.keep else []
        make = PoisonedSlots if (self.slots if slots is None else slots) else PoisonedData
        self._poisoned = make(data, self._current, self.poisoner, seed, as_bytes=self.clamp == "uint8")
        return self._poisoned.data

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch whose slots are poisoned: see `PoisonedSlots.batch`."""
        if not isinstance(self._poisoned, PoisonedSlots):
            raise UserError("the attack poisons images, not slots of batches")
        return self._poisoned.batch(rows)

    def update(self, network: nn.Module, iteration: int, synthetic: Tensor) -> None:
        """Optimize the trigger on a network that was trained on the synthetic images; stamp the poisoned images anew.

        Args:
            network: left as it was.
            iteration: of the condensation, for the record.
            synthetic: not used by this rule.
        """
        if self._poisoned is None:
            raise UserError("poison data first: there are none whose trigger could be updated")
        preprocessing = self._poisoned.data.preprocessing
        found, record = update_trigger(network, self.trigger, preprocessing, clamp=self.clamp, **self.options)
        self.history.append(replace(record, iteration=iteration))
        if self.keep:
            self.trajectory.append(found)
        if record.steps:
            self._current = found
            self._poisoned.stamp(found)

    def state(self) -> dict[str, Tensor]:
        """The trigger, and the record of its updates."""
        rows = [
            [record.iteration, record.steps, record.activation, record.loss, record.excess] for record in self.history
        ]
        kept = {
            "pattern": self.trigger.pattern.cpu(),
            "history": torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 5),
        }
        if self.keep:
            kept["trajectory"] = torch.stack([trigger.pattern.cpu() for trigger in self.trajectory])
        return kept

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`, after the same `poison`; the poisoned images are stamped anew."""
        if self._poisoned is None:
            raise UserError("poison data first: there are none whose trigger could be put back")
        self.history = [
            UpdateRecord(int(iteration), int(steps), activation, loss, excess)
            for iteration, steps, activation, loss, excess in state["history"].tolist()
        ]
        self._current = replace(self.trigger, pattern=state["pattern"])
        self.trajectory = [replace(self.trigger, pattern=pattern) for pattern in state.get("trajectory", [])]
        self._poisoned.stamp(self._current)

    def describe(self) -> dict[str, Any]:
        """The mark of a poisoned set."""
        shown = self.trigger.valid() if self.clamp == "uint8" else self.trigger
        return {
            "attack": self.name,
            "portion": self.poisoner.portion,
            "target": self.poisoner.target,
            "mapping": self.poisoner.mapping,
            "clamp": self.clamp,
            "ori": self.ori,
            "slots": isinstance(self._poisoned, PoisonedSlots),
            **self.options,
            "updates": len(self.history),
            "updates_without_step": sum(record.steps == 0 for record in self.history),
            "trigger": shown.describe(),
        }


def _share(data: RealData, share: float, seed: int) -> RealData:
    """A random share of the data."""
    n = len(data.labels)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, int(share * n))].sort().values
    return replace(
        data, images=data.images[rows.to(data.images.device)], labels=data.labels[rows], pixels=data.pixels[rows]
    )
