"""Networks with several exits: as stages that can stop (``EarlyExitModel``)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tenfold.systems.boosted_exits.method import ensemble_logits, expand_reweight, rescale_gradient

State = Any
"""What one stage hands to the next: a tensor, or a (nested) list, tuple or dict of tensors."""


class EarlyExitModel(nn.Module):
    """A network of stages, each followed by a head: exit n costs stages 1..n and heads 1..n.

    Args:
        stages: N modules; stage n maps the state of stage n-1 (the input for the first) to its own.
        heads: N modules; head n maps the tapped tensor of stage n to logits ``(batch, classes)``.
        reweight: factor of the older ensemble, see ``expand_reweight``.
        rescale: whether training rescales gradients (gradient equilibrium). Only the tapped tensor is rescaled.
        tap: position of the tensor that heads read in a state that is a list or tuple; ``-1`` is the last, which in
            MSDNet is the coarsest scale. A state that is a tensor is the tap itself.

    The module's value is the list of the heads' own logits ``f_1 .. f_N``; ``ensemble`` makes the predictions
    ``z_1 .. z_N`` of it.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        *,
        reweight: float | Sequence[float] = 0.5,
        rescale: bool = True,
        tap: int = -1,
    ) -> None:
        super().__init__()
        if len(stages) != len(heads) or not stages:
            raise ValueError(f"each stage needs one head; got {len(stages)} stages and {len(heads)} heads")
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.reweight = expand_reweight(reweight, len(stages))
        self.rescale = rescale
        self.tap = tap

    @property
    def exits(self) -> int:
        """Number of exits N."""
        return len(self.heads)

    def run_stage(self, n: int, state: State) -> tuple[State, Tensor]:
        """Run stage n (counted from 0) and its head: ``(state, logits f_n)``; serving calls one stage at a time."""
        state = self.stages[n](state)
        tapped = state if isinstance(state, Tensor) else state[self.tap]
        if not (self.rescale and self.training):
            return state, self.run_head(n, tapped, state)
        remaining = self.exits - n
        tapped = rescale_gradient(tapped, 1 / remaining)
        logits = self.run_head(n, tapped, state)
        return _with_tap(state, self.tap, rescale_gradient(tapped, remaining - 1)), logits

    def run_head(self, n: int, tapped: Tensor, state: State) -> Tensor:
        """Logits ``f_n`` of head n; for networks whose heads read more of the state than the tapped tensor."""
        return self.heads[n](tapped)

    def forward(self, x: State) -> list[Tensor]:
        """All heads' own logits: N tensors ``(batch, classes)``."""
        logits = []
        state = x
        for n in range(self.exits):
            state, f = self.run_stage(n, state)
            logits.append(f)
        return logits

    def ensemble(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Predictions ``z_1 .. z_N`` of all exits from the heads' own logits."""
        return ensemble_logits(logits, self.reweight)


def _with_tap(state: State, tap: int, tensor: Tensor) -> State:
    if isinstance(state, Tensor):
        return tensor
    parts = list(state)
    parts[tap] = tensor
    return type(state)(parts)
