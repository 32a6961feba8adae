"""Networks that were cut into stages, and those that only an exception from a hook can stop."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.taps import tap_hooks
from tenfold.systems.boosted_exits.attach.attach_exits import AttachedExits, Inputs, attention_mask, call_network
from tenfold.systems.boosted_exits.attach.capture import Keys, arguments, flatten
from tenfold.systems.boosted_exits.attach.heads import run_head, takes_mask
from tenfold.systems.boosted_exits.method import add_exit
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel, State

Method = Literal["fx", "export", "sequential", "hooks"]


@dataclass(frozen=True)
class CutReport:
    """How a network was cut, and how well the stages reproduce it.

    Attributes:
        method: what worked: ``fx``, ``export``, ``sequential`` or ``hooks``.
        failures: why the methods tried before did not work.
        difference: largest absolute difference of a logit to the uncut network, over two batch sizes.
        compaction_difference: the same where one sample leaves after every stage; 0 for ``hooks``, which takes one.
    """

    method: Method
    failures: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0
    compaction_difference: float = 0.0


class CutModel(EarlyExitModel):
    """A network in stages, made by ``cut``: an ``EarlyExitModel``.

    The first stage takes a batch as the example was: a tensor, a tuple or a dict. The state between stages is a
    tuple whose last entry is the tapped tensor, or this tensor alone; the last stage gives the network's own logits.

    Args:
        stages: N modules.
        heads: one per stage.
        masks: per stage, the position in its state of the attention mask that its head reads, if it reads one.
        batched: per stage, which entries of its state have the batch as first dimension (one entry where the state
            is a tensor). Those lose the rows of samples that leave; the others (tensors, numbers) are passed on.
        report: how it was cut.
        reweight: see ``expand_reweight``.
        rescale: whether training rescales gradients.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        *,
        masks: Sequence[int | None],
        batched: Sequence[tuple[bool, ...]],
        report: CutReport,
        reweight: Sequence[float],
        rescale: bool,
    ) -> None:
        super().__init__(stages, heads, reweight=reweight, rescale=rescale)
        self.masks = list(masks)
        self.batched = list(batched)
        self.cut_report = report

    def run_head(self, n: int, tapped: Tensor, state: State) -> Tensor:
        """Logits ``f_n`` of head n, which reads the attention mask in the state if it reads one."""
        mask = self.masks[n]
        return super().run_head(n, tapped, state) if mask is None else run_head(self.heads[n], tapped, state[mask])


class HookStopper(CutModel):
    """Stops a network that cannot be cut: an exception thrown from the hook of a tap ends the forward pass.

    For one input at a time, in evaluation mode. ``run_until`` computes what an exit needs and nothing more. As
    stages (``run_stage``) it gives the same results, but each stage runs the network from its start.
    """

    def __init__(self, exits: AttachedExits, example: Inputs, report: CutReport) -> None:
        keys, tensors = flatten(example)
        heads = [*exits.heads, nn.Identity()]
        mask = mask_position(exits, example)
        state = (True,) * (len(tensors) + 1)
        super().__init__(
            [_HookStage(exits, n, keys) for n in range(exits.exits)],
            heads,
            masks=[mask if takes_mask(head) else None for head in heads],
            batched=[state] * len(exits.taps) + [(True,)],
            report=report,
            reweight=exits.reweight,
            rescale=False,
        )
        self.uncut = exits

    def run_until(self, inputs: Inputs, leaves: Callable[[int, Tensor], bool]) -> list[Tensor]:
        """Run up to the first exit where the input leaves.

        Args:
            inputs: a batch of one.
            leaves: takes the number n of an exit, from 0, and its ensemble logits ``z_n`` ``(1, classes)``; gives
                whether the input leaves there. It is not asked at the last exit.

        Returns:
            The own logits ``f_n`` of the exits that were computed, each ``(1, classes)``.

        Raises:
            UserError: the batch is not of one input.
        """
        keys, tensors = flatten(inputs)
        _require_one(tensors)
        args, kwargs = arguments(keys, tensors)
        mask = attention_mask(self.uncut.trunk, args, kwargs)
        logits: list[Tensor] = []
        ensemble: Tensor | None = None

        def visit(path: str, tensor: Tensor) -> None:
            nonlocal ensemble
            n = len(logits)
            logits.append(run_head(self.heads[n], tensor, mask))
            ensemble = add_exit(logits[n], ensemble, self.reweight[n - 1])
            if leaves(n, ensemble):
                raise _Stop

        with suppress(_Stop), tap_hooks(self.uncut.trunk, self.uncut.taps, visit):
            logits.append(self.uncut.output(call_network(self.uncut.trunk, args, kwargs)))
        return logits


class _Stop(BaseException):
    """Ends a forward pass; not an ``Exception``, which a network might catch."""


class _HookStage(nn.Module):
    def __init__(self, exits: AttachedExits, n: int, keys: Keys) -> None:
        super().__init__()
        self.trunk = exits.trunk
        self.output = exits.output
        self.is_first = n == 0
        self.tap = exits.taps[n] if n < len(exits.taps) else None
        self.input_keys = keys

    def forward(self, state: State) -> State:
        tensors = flatten(state)[1] if self.is_first else state[:-1]
        _require_one(tensors)
        args, kwargs = arguments(self.input_keys, tensors)
        if self.tap is None:
            return self.output(call_network(self.trunk, args, kwargs))
        tapped: list[Tensor] = []

        def visit(path: str, tensor: Tensor) -> None:
            tapped.append(tensor)
            raise _Stop

        with suppress(_Stop), tap_hooks(self.trunk, [self.tap], visit):
            call_network(self.trunk, args, kwargs)
        return (*tensors, *tapped)


def mask_position(exits: AttachedExits, example: Inputs) -> int | None:
    """Where the attention mask stands among the flat tensors of a batch."""
    keys, tensors = flatten(example)
    mask = attention_mask(exits.trunk, *arguments(keys, tensors))
    return next((n for n, tensor in enumerate(tensors) if tensor is mask), None)


def _require_one(tensors: Sequence[Tensor]) -> None:
    if tensors[0].shape[0] != 1:
        raise UserError(f"this network stops by hooks, one input at a time; got a batch of {tensors[0].shape[0]}")
