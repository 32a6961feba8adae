"""Boosted early exits (BoostNet, AAAI 2023): the heads of a network as one additive model.

Head n gives logits ``f_n``; exit n predicts with the sum of its own and the discounted older ones:

    z_1 = f_1
    z_n = f_n + r_{n-1} z_{n-1}                               the ensemble
    L   = sum_n loss(f_n + stop_gradient(r_{n-1} z_{n-1}), y)   every head learns what the older ones left over

    h = x
    for block, head in zip(blocks, heads):
        h = block(h)
        h = rescale_gradient(h, 1 / (N - n))                  gradient equilibrium, n counted from 0
        f = head(h)
        h = rescale_gradient(h, N - n - 1)

``r = 0`` is the ordinary multi-exit network, ``r = 1`` plain boosting; the published value is 0.5. Training,
validation, thresholds and serving all go through ``add_exit``, so that they cannot disagree about ``z``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def expand_reweight(reweight: float | Sequence[float], exits: int) -> tuple[float, ...]:
    """One reweighting factor per exit, from the forms that the published program takes.

    Args:
        reweight: one number for all exits; two numbers, interpolated linearly over the exits; or one per exit.
            Each in [0, 1].
        exits: number of exits N.

    Returns:
        ``(N,)`` factors ``r_0 .. r_{N-1}``; ``r_{n-1}`` multiplies the ensemble of exit n-1 when exit n is added, so
        that the last factor is never used (training convention of the official code).

    Raises:
        ValueError: a factor outside [0, 1], or a number of factors that is not 1, 2 or N.
    """
    values = (float(reweight),) if isinstance(reweight, int | float) else tuple(float(value) for value in reweight)
    if any(not 0 <= value <= 1 for value in values):
        raise ValueError(f"reweight must lie in [0, 1]; got {values}")
    if len(values) == 1:
        return values * exits
    if len(values) == exits:
        return values
    if len(values) == 2:
        return tuple(values[0] + (values[1] - values[0]) * n / (exits - 1) for n in range(exits))
    raise ValueError(f"reweight takes 1, 2 or {exits} numbers for {exits} exits; got {len(values)}")


def add_exit(f: Tensor, older: Tensor | None, r: float | Tensor, *, stop_gradient: bool = False) -> Tensor:
    """Ensemble logits of one exit: ``z_n = f_n + r_{n-1} z_{n-1}`` (``f_1`` where there is no older exit).

    Args:
        f: ``(batch, classes)`` logits of this exit's own head.
        older: ``(batch, classes)`` ensemble logits of the exit before, or ``None`` for the first exit.
        r: factor of the exit before, in [0, 1].
        stop_gradient: whether the older ensemble is a constant for the gradient, as in training.
    """
    if older is None:
        return f
    return f + r * (older.detach() if stop_gradient else older)


def ensemble_logits(
    logits: Sequence[Tensor],
    reweight: float | Sequence[float] = 0.5,
    *,
    stop_gradient: bool = False,
    official_eval_index: bool = False,
) -> list[Tensor]:
    """Ensemble logits ``z_1 .. z_N`` of all exits.

    Args:
        logits: N tensors ``(batch, classes)``, each head's own logits.
        reweight: see ``expand_reweight``.
        stop_gradient: see ``add_exit``.
        official_eval_index: use ``r_n`` instead of ``r_{n-1}``, as the official evaluation (not its training) does;
            for reproducing files made with a factor that is not constant. Agrees with the default for a constant one.
    """
    factors = expand_reweight(reweight, len(logits))
    ensembles: list[Tensor] = []
    for n, f in enumerate(logits):
        r = factors[n if official_eval_index else n - 1]
        ensembles.append(add_exit(f, ensembles[-1] if ensembles else None, r, stop_gradient=stop_gradient))
    return ensembles


class _RescaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)  # x itself would be taken for changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.weight, None


def rescale_gradient(x: Tensor, weight: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``weight`` (IMTA, ICCV 2019, there called gradient equilibrium).

    Args:
        x: any tensor; its value is returned unchanged, bit for bit. An operation in place on the result is an error
            of autograd: clone it first.
        weight: factor of the gradient.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    return _RescaleGradient.apply(x, weight)


@dataclass(frozen=True)
class ExitLosses:
    """Losses of one batch.

    Attributes:
        total: scalar, to be minimised.
        per_exit: ``(exits,)`` loss of each exit's ensemble, without gradient.
    """

    total: Tensor
    per_exit: Tensor


class BoostedExitLoss(nn.Module):
    """Loss of all exits as one gradient-boosted additive model (BoostNet, section "mini-batch joint optimization").

    ``L = sum_n loss(f_n + stop_gradient(r_{n-1} z_{n-1}), y)``: one forward and one backward pass train all heads.
    With ``reweight=0`` this is joint training, the baseline.

    Args:
        reweight: see ``expand_reweight``; 0.5 in all published settings.
        loss: maps ``(batch, classes)`` ensemble logits and the targets to a scalar mean; cross-entropy by default.
            Any loss of additive outputs will do: ``binary_cross_entropy_with_logits`` for several labels,
            ``mse_loss`` for regression.
        stop_gradient: whether an exit's loss leaves the older heads alone. Off only for ablation.
        equalise: divide each exit's loss by its moving average (momentum 0.9) and multiply by the mean of these
            averages, as the official ImageNet trainer can. Averages are taken over all processes.

    Example:
        >>> heads = [torch.randn(8, 10, requires_grad=True) for _ in range(3)]
        >>> losses = BoostedExitLoss(reweight=0.5)(heads, torch.randint(10, (8,)))
        >>> losses.total.backward()
        >>> tuple(losses.per_exit.shape)
        (3,)
    """

    averages: Tensor

    def __init__(
        self,
        reweight: float | Sequence[float] = 0.5,
        loss: Loss = F.cross_entropy,
        *,
        stop_gradient: bool = True,
        equalise: bool = False,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.reweight = reweight
        self.loss = loss
        self.stop_gradient = stop_gradient
        self.equalise = equalise
        self.momentum = momentum
        # Sized at the first batch, so that every exit has its average (the official list follows the number of
        # blocks and drops RANet's further exits); a buffer, so that it is saved and resumed.
        self.register_buffer("averages", torch.empty(0))

    def forward(self, logits: Sequence[Tensor], targets: Tensor) -> ExitLosses:
        """Losses of a batch.

        Args:
            logits: N tensors ``(batch, classes)``, each head's own logits ``f_n``.
            targets: what ``loss`` takes, for cross-entropy ``(batch,)`` class indices.
        """
        ensembles = ensemble_logits(logits, self.reweight, stop_gradient=self.stop_gradient)
        losses = torch.stack([self.loss(z, targets) for z in ensembles])
        total = (losses * self._equalising_weights(losses)).sum() if self.equalise else losses.sum()
        return ExitLosses(total, losses.detach())

    @torch.no_grad()
    def _equalising_weights(self, losses: Tensor) -> Tensor:
        current = losses.detach().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(current)
            current /= torch.distributed.get_world_size()
        if self.training or self.averages.numel() == 0:
            old = self.averages if self.averages.numel() else current
            self.averages = self.momentum * old + (1 - self.momentum) * current
        return self.averages.mean() / self.averages

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        saved = state_dict.get(prefix + "averages")
        if saved is not None:
            self.averages = torch.empty_like(saved, device=self.averages.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def confidence(ensemble: Tensor) -> Tensor:
    """Confidence of an exit: the largest probability of ``softmax(z_n)``, ``(batch,)`` from ``(batch, classes)``."""
    return ensemble.softmax(-1).amax(-1)


def leaves(confidences: Tensor, threshold: float | Tensor) -> Tensor:
    """Which samples leave at an exit: ``(batch,)`` booleans, ``confidence >= threshold``.

    The only place where a confidence meets a threshold: solver, simulation and serving all call it.
    """
    return confidences >= threshold
