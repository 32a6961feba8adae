"""How much each entry matters for a task: the scores by which a mask is chosen.

With ``l_n`` the loss of example n of N, and ``theta`` the weights as they are:

===============  ======================================================================================
``fisher``       1/N sum_n (d l_n / d theta_j)^2, the empirical Fisher information
``fisher_sampled``  the same with labels drawn from the model, the true Fisher information
``grad``         |1/N sum_n d l_n / d theta_j|
``taylor``       |theta_j| times ``grad``: what the loss changes by, to first order, if the entry is dropped
``change``       |theta_j after a dense training - theta_j|; the model is rewound afterwards
``magnitude``    |theta_j|
``random``       uniform, from a seed
===============  ======================================================================================

Fisher and gradients are per example (a batch would give the square of a mean, which is something else), with dropout
off and statistics of batch norm fixed.

Sources: FISH Mask (Sung et al., NeurIPS 2021) and Child-Tuning-D (Xu et al., EMNLP 2021) for ``fisher``; LT-SFT (Ansell
et al., ACL 2022) for ``change``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import RunStopped, UserError
from tenfold.training.parallel import total_over_ranks, world_size

Criterion = Literal["fisher", "fisher_sampled", "grad", "taylor", "change", "magnitude", "random"]
CRITERIA: tuple[str, ...] = get_args(Criterion)

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Maps the model and one example (a batch of one) to its loss, a scalar."""

LabelSampler = Callable[[nn.Module, Any, torch.Generator], Any]
"""Gives the example back with labels drawn from the model's own prediction."""


@contextmanager
def evaluating(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Eval mode, and gradients for exactly these parameters; everything is as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = {id(parameter) for parameter in parameters.values()}
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)


def gradient_scores(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    loss: LossFunction,
    examples: Iterable[Any],
    *,
    squared: bool,
    sampler: LabelSampler | None = None,
    seed: int = 0,
    chunk: int = 0,
) -> tuple[dict[str, Tensor], int]:
    """Mean over examples of the gradient or of its square, and the number of examples of all processes.

    Args:
        model: any module; its mode and ``requires_grad`` are as before afterwards.
        parameters: those to score, by name.
        loss: of one example. With ``chunk``, of a batch of one cut from a larger one.
        examples: one at a time; with ``chunk``, batches whose tensors share their first axis. Under several processes
            each gives its own share.
        squared: squares (Fisher) or signed gradients.
        sampler: draws labels from the model; for the true Fisher.
        seed: of these draws.
        chunk: 0 for one example after the other; else so many at a time by ``torch.func.vmap``, which holds as many
            copies of the gradient.

    Returns:
        Float32 tensors shaped like the parameters.

    Raises:
        UserError: there is no example, or a loss is no scalar.
        RunStopped: a gradient is not finite.
    """
    totals = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    with evaluating(model, parameters):
        for example in examples:
            if sampler is not None:
                with torch.no_grad():
                    example = sampler(model, example, generator)
            if chunk:
                seen += _add_vectorized(model, parameters, loss, example, squared, chunk, totals)
            else:
                _add_one(model, parameters, loss, example, squared, totals)
                seen += 1
    count = total_over_ranks(seen)
    if not count:
        raise UserError("a mask chosen by gradients needs at least one example of the task")
    for name, total in totals.items():
        if world_size() > 1:
            dist.all_reduce(total)
        total /= count
        if not torch.isfinite(total).all():
            raise RunStopped(f"the gradient of {name!r} is not finite on these examples: no mask can be chosen by it")
    return totals, count


def _add_one(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    loss: LossFunction,
    example: Any,
    squared: bool,
    totals: dict[str, Tensor],
) -> None:
    value = loss(model, example)
    if value.dim():
        raise UserError(f"the loss of an example is a scalar; got the shape {tuple(value.shape)}")
    if value.grad_fn is None:  # no candidate took part
        return
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for total, gradient in zip(totals.values(), gradients, strict=True):
        if gradient is not None:
            gradient = gradient.float()
            total.add_(gradient.square() if squared else gradient)


def _add_vectorized(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    loss: LossFunction,
    batch: Any,
    squared: bool,
    chunk: int,
    totals: dict[str, Tensor],
) -> int:
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    rest = {
        name: value.detach()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if name not in values
    }

    class _Bound(nn.Module):  # the loss wants a module to call; this one runs with the weights of the function
        def __init__(self, weights: Mapping[str, Tensor]) -> None:
            super().__init__()
            self.weights = weights

        def forward(self, *inputs: Any, **named: Any) -> Any:
            return torch.func.functional_call(model, {**rest, **self.weights}, inputs, named)

    def one(weights: Mapping[str, Tensor], example: Any) -> Tensor:
        as_batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0), example)
        return loss(_Bound(weights), as_batch)

    gradients = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0), randomness="error")
    size = next(leaf.shape[0] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
    for start in range(0, size, chunk):
        part = pytree.tree_map_only(Tensor, lambda tensor: tensor[start : start + chunk], batch)  # noqa: B023
        for name, gradient in gradients(values, part).items():
            gradient = gradient.float()
            totals[name] += (gradient.square() if squared else gradient).sum(0)
    return size


def change_scores(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], train: Callable[[nn.Module], Any]
) -> dict[str, Tensor]:
    """|weights after ``train`` - weights before|; the model, its buffers and mode are rewound bit for bit.

    Args:
        model: any module.
        parameters: those to score.
        train: trains the model in place, all parameters.
    """
    before = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    modes = {module: module.training for module in model.modules()}
    train(model)
    start = {name: before[name] for name in parameters}
    scores = {name: (value.detach() - start[name]).abs().float() for name, value in parameters.items()}
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            value.copy_(before[name])
    for module, mode in modes.items():
        module.training = mode
    return scores


def random_scores(parameters: Mapping[str, nn.Parameter], seed: int) -> dict[str, Tensor]:
    """Uniform scores in (0, 1), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, value in parameters.items():
        # In double precision two entries hardly ever tie, and ties would go to the first entries.
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        scores[name] = (1 - drawn).to(value.device)
    return scores


def sample_bernoulli(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Labels 0 or 1 drawn from ``sigmoid(logits)``, of the same shape, for ``fisher_sampled``.

    Args:
        logits: any shape.
        generator: of the draws, on the CPU.
    """
    return torch.bernoulli(logits.detach().float().sigmoid().cpu(), generator=generator).to(logits)


def sample_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Classes ``(...,)`` int64 drawn from ``softmax(logits)`` ``(..., classes)``, for ``fisher_sampled``.

    Args:
        logits: ``(..., classes)``.
        generator: of the draws, on the CPU.
    """
    shares = logits.detach().float().softmax(-1).cpu()
    drawn = torch.multinomial(shares.reshape(-1, shares.shape[-1]), 1, generator=generator)
    return drawn.reshape(shares.shape[:-1]).to(logits.device)
