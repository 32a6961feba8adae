"""DOORPING: the trigger is optimized again and again while the data are condensed [paper; update rule from the code].

::

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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.networks import last_linear
from tenfold.systems.condensation_audit.sets import Preprocessing
from tenfold.systems.condensation_audit.triggers import (
    Mapping,
    PoisonedData,
    PoisonedSlots,
    Poisoner,
    Trigger,
    random_patch,
)

if TYPE_CHECKING:
    from tenfold.systems.condensation_audit.real_images import RealData

Clamp = Literal["none", "valid", "uint8"]


@dataclass(frozen=True)
class KeyNeurons:
    """Neurons that the trigger is to drive.

    Attributes:
        reader: the linear layer whose input holds their activations: what follows their own layer's activation
            function, so that it does not matter whether that works in place.
        indices: ``(k,)`` which of its inputs.
    """

    reader: nn.Linear
    indices: Tensor


def find_key_neurons(network: nn.Module, topk: int = 1, layer: int = -2) -> KeyNeurons:
    """Neurons with the largest incoming weight mass [code].

    Args:
        network: any, with a linear layer.
        topk: how many.
        layer: which linear layer they belong to, counted from the end; -2 is the one before the classifier. A network
            without that layer (one linear layer after the convolutions) has its classifier's inputs as neurons, and
            their mass is that of the outgoing weights [inferred: the published selection crashes there].

    Raises:
        UserError: the network has no linear layer, or the layer's neurons do not feed the next linear layer.
    """
    if layer > -2:
        raise UserError(f"the layer of the key neurons is counted from the end, -2 or less; got {layer}")
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if len(linears) < 2:
        reader = last_linear(network)
        mass = reader.weight.detach().abs().sum(0)
    else:
        if len(linears) < -layer:
            raise UserError(f"the network has {len(linears)} linear layers; there is no layer {layer}")
        own, reader = linears[layer], linears[layer + 1]
        if own.out_features != reader.in_features:
            raise UserError(
                f"layer {layer} has {own.out_features} neurons but the next linear layer reads {reader.in_features}"
            )
        mass = own.weight.detach().abs().sum(1)
    return KeyNeurons(reader, mass.topk(min(topk, len(mass))).indices)


@contextmanager
def reading_keys(network: nn.Module, keys: KeyNeurons) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, a function from images to ``(n, k)`` activations of the key neurons, after ReLU or the like.

    One hook for all calls, gone afterwards: the published code adds one at every step.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].flatten(1)[:, keys.indices])  # a copy: what follows may work in place

    def read(images: Tensor) -> Tensor:
        network(images)
        return kept.pop()

    handle = keys.reader.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


def key_activations(network: nn.Module, keys: KeyNeurons, images: Tensor) -> Tensor:
    """``(n, k)`` activations of the key neurons, after their activation function."""
    with reading_keys(network, keys) as read:
        return read(images)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the trigger.

    Attributes:
        iteration: of the condensation.
        steps: optimizer steps; 0 where the stop rule fired at once.
        activation: mean activation of the key neurons before.
        loss: at the end.
        excess: of the trigger afterwards, see :attr:`Trigger.excess`.
    """

    iteration: int
    steps: int
    activation: float
    loss: float
    excess: float


def update_trigger(
    network: nn.Module,
    trigger: Trigger,
    preprocessing: Preprocessing,
    *,
    topk: int = 1,
    layer: int = -2,
    alpha: float = 10.0,
    clamp: Clamp = "none",
    steps: int = 1000,
    learning_rate: float = 0.08,
    tolerance: float = 0.5,
    official_sign: bool = False,
    after_step: Callable[[Tensor], None] | None = None,
) -> tuple[Trigger, UpdateRecord]:
    """One update of the trigger on one network, which is left as it was.

    Args:
        network: trained on the current synthetic images.
        trigger: current one; for blended and additive triggers all pixels of the mask are optimized.
        preprocessing: of the data; steps are taken in normalized units, as published.
        topk: number of key neurons.
        layer: see :func:`find_key_neurons`.
        alpha: how many times the present activation is aimed at.
        clamp: ``none`` as published, or ``valid`` or ``uint8``: projected to the pixel range after each step.
        steps: at most.
        learning_rate: of Adam.
        tolerance: loss at which it stops.
        official_sign: aim at ``alpha a0`` also where ``a0`` is negative, which pushes it down; else ``alpha |a0|``.
        after_step: called with the pattern in pixel units after each step; for checks.
    """
    keys = find_key_neurons(network, topk, layer)
    device = keys.reader.weight.device
    additive = trigger.mode == "additive"
    mean, std = (torch.tensor(values, device=device).view(-1, 1) for values in (preprocessing.mean, preprocessing.std))
    middle, lowest = (torch.zeros_like(mean), -1.0) if additive else (mean, 0.0)
    start, free = trigger.pattern.to(device), trigger.mask.to(device)
    # The mask's pixels only, (channels, pixels), in normalized units.
    inner = ((start[:, free] - middle) / std).requires_grad_()
    bounds = (lowest - middle) / std, (1 - middle) / std
    optimizer = torch.optim.Adam([inner], lr=learning_rate, betas=(0.9, 0.99))
    # The trigger alone, on black, is what the network sees: a constant, but for the mask's pixels. On black all modes
    # are a multiple of the pattern.
    strength = 1.0 if trigger.mode == "patch" else trigger.alpha
    shift = (strength * middle - mean) / std
    black = (-mean / std).unsqueeze(2).expand(start.shape).unsqueeze(0)
    everywhere = free.expand_as(black)

    def pattern() -> Tensor:
        return start.masked_scatter(free.expand_as(start), inner.detach() * std + middle)

    def seen() -> Tensor:
        image = black.masked_scatter(everywhere, inner * strength + shift)
        return image if preprocessing.zca is None else preprocessing.zca.transform(image)

    with evaluating(network), reading_keys(network, keys) as read, torch.enable_grad():
        with torch.no_grad():
            before = read(seen())
            aim = alpha * (before if official_sign else before.abs())
        taken, loss = 0, torch.zeros(())
        while True:
            loss = (read(seen()) - aim).square().mean()
            if taken == steps or float(loss.detach()) < tolerance:
                break
            (inner.grad,) = torch.autograd.grad(loss, inner)
            optimizer.step()
            taken += 1
            if clamp != "none":
                inner.data.clamp_(bounds[0], bounds[1])
            if after_step is not None:
                after_step(pattern())
    # Without a step the trigger is the very same, to the last bit.
    found = trigger if taken == 0 else replace(trigger, pattern=pattern().to(trigger.pattern))
    if clamp != "none" and taken:
        found = replace(found, pattern=found.pattern.clamp(lowest, 1.0))  # rounding of the way back to pixels
    record = UpdateRecord(-1, taken, float(before.mean()), float(loss.detach()), found.excess)
    return found, record


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
        layer: of the key neurons, see :func:`find_key_neurons`.
        alpha: how many times the present activation is aimed at.
        steps: of one update, at most.
        learning_rate: of one update.
        official_sign: see :func:`update_trigger`.
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
            "topk": topk, "layer": layer, "alpha": alpha, "steps": steps, "learning_rate": learning_rate,
            "official_sign": official_sign,
        }  # fmt: skip
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

    def poison(self, data: "RealData", seed: int = 0, *, slots: bool | None = None) -> "RealData":
        """Stamp and relabel a copy of what the attacker holds; begins the attack anew.

        Args:
            data: clean; not touched.
            seed: of the choice of images and of the first colours.
            slots: poison places of each batch, see :meth:`batch`, and leave the data clean; as the attack says where
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
        """Images and labels of a batch whose slots are poisoned: see :meth:`PoisonedSlots.batch`."""
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
        """Continue from :meth:`state`, after the same :meth:`poison`; the poisoned images are stamped anew."""
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


def _share(data: "RealData", share: float, seed: int) -> "RealData":
    """A random share of the data."""
    n = len(data.labels)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, int(share * n))].sort().values
    return replace(
        data, images=data.images[rows.to(data.images.device)], labels=data.labels[rows], pixels=data.pixels[rows]
    )
