"""The estimator as a cheap auxiliary task of the main training (paper A), without a trace in the main model.


    loss = main_loss(main(x), y)
    on a random share of the rows, from a warm-up on:
        f  = stop_gradient(activations of a pass without dropout)
        s2 = variance of T' passes with dropout, without gradient
        loss = loss + weight * mean(s2 exp(-g(f)) + g(f))           changes g only

U drifts while the main model learns, so finish with a short post-hoc fit that starts from g: ``fit(..., start=...)``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.systems.activation_uncertainty.estimator.estimator import Estimator, estimator_loss
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.calling import (
    Inputs,
    batch_size,
    call,
    eval_mode,
    main_output,
    mask_of,
    to_device,
)


class JointTask(nn.Module):
    """The auxiliary loss of a batch; only the estimator in it learns.

    Args:
        learner: names the main model, its dropout, taps and target.
        start: step from which it runs; as a rule half of the training.
        passes: T', 2 to 4.
        share: of the rows of each batch.
        weight: of the auxiliary loss.
        hidden: widths of the estimator.
        momentum: with which the features' statistics follow the main model.
        seed: of the rows and masks; the main training's random numbers are not touched.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        >>> joint = JointTask(ActivationUncertainty(net, torch.zeros(2, 4)), start=0)
        >>> optimizer = torch.optim.Adam([*net.parameters(), *joint.estimator.parameters()])
        >>> x, y = torch.randn(64, 4), torch.randn(64, 1)
        >>> (nn.functional.mse_loss(net(x), y) + joint(x, step=0)).backward()
    """

    seen: Tensor
    second_moment: Tensor

    def __init__(
        self,
        learner: ActivationUncertainty,
        *,
        start: int,
        passes: int = 2,
        share: float = 0.1,
        weight: float = 1.0,
        hidden: tuple[int, ...] = (100, 50),
        momentum: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if passes < 2 or not 0 < share <= 1:
            raise UserError(f"a joint task needs at least 2 passes and a share in (0, 1]; got {passes} and {share}")
        self._learner = [learner]  # not a submodule: the main model's parameters are not this task's
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.estimator = Estimator(learner.features.width, hidden=hidden, loss="gamma", power=learner.target.power)
        self.start, self.passes, self.share, self.weight = start, passes, share, weight
        self.momentum, self.seed = momentum, seed
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("second_moment", torch.zeros(learner.features.width))

    def forward(self, inputs: Inputs, step: int) -> Tensor:
        """The weighted auxiliary loss (scalar) of a batch; 0 before ``start``.

        Args:
            inputs: of the main model, as in training.
            step: of the main training, from 0.
        """
        device = self.estimator.mean.device
        if step < self.start:
            return torch.zeros((), device=device)
        inputs = to_device(inputs, device)
        rows = batch_size(inputs)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
        chosen = torch.randperm(rows, generator=generator)[: max(round(self.share * rows), 2)]
        some = pytree.tree_map(lambda x: x[chosen.to(x.device)] if isinstance(x, Tensor) else x, inputs)
        features, spread = self._observe(some, step)
        self._follow(features, spread)
        raw = self.estimator.network(self.estimator.standardise(features))
        return self.weight * estimator_loss("gamma", raw, (spread / self.estimator.level[1]).to(raw.dtype))

    @torch.no_grad()
    def _observe(self, inputs: Inputs, step: int) -> tuple[Tensor, Tensor]:
        """Features and spread of some rows."""
        learner = self._learner[0]
        target, model = learner.target, learner.model
        with eval_mode(model), learner.features.collect(mask_of(model, inputs)) as read:
            served = main_output(call(model, inputs), learner.output)
        features = read.features(served).detach().float()
        with learner.dropout.on(seed=derived_seed(self.seed, step, 1)):
            outputs = [target.check(main_output(call(model, inputs), learner.output)) for _ in range(self.passes)]
        quantities = target.quantities(torch.stack(outputs))
        mean = quantities.mean(0)
        checked = target.check(served)
        predicted = checked.argmax(-1) if target.classes else checked
        return features, target.spread(mean, (quantities - mean).square().sum(0), self.passes, predicted)

    @torch.no_grad()
    def _follow(self, features: Tensor, spread: Tensor) -> None:
        """Let the statistics follow: plain means at first, moving ones later."""
        self.seen += 1
        pace = max(self.momentum, 1 / float(self.seen))
        own: Any = self.estimator
        own.mean.lerp_(features.mean(0), pace)
        self.second_moment.lerp_(features.square().mean(0), pace)
        deviation = (self.second_moment - own.mean.square()).clamp(min=0).sqrt()
        own.scale.copy_(torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), torch.zeros_like(deviation)))
        level = spread.mean().to(own.level.dtype).clamp(min=1e-30)
        own.level[1] = level if int(self.seen) == 1 else own.level[1].lerp(level, pace)
