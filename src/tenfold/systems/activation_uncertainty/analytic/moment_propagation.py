"""Mean and variance of the outputs, layer by layer, in one pass: no sampling, nothing learnt."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.network.calling import eval_mode


@dataclass
class Moments:
    """Mean and variance of a random tensor, element by element; units are taken for independent."""

    mean: Tensor
    variance: Tensor


_SHAPES = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "getitem", "contiguous")
_FACTS = ("size", "dim", "numel", "getattr")
_SUMS = ("add", "iadd", "add_")


class MomentPropagation(fx.Interpreter):
    """Mean and variance through a network, layer by layer (Brach, Sick, Duerr 2020), in one pass.

    Known are ``nn.Dropout``, linear and convolution layers, ReLU of a Gaussian, normalization in eval mode, average
    pooling, maximum pooling (the variance of the largest mean), flattening, concatenation and sums; anything else may
    only meet values that are not random. The derivation takes units for independent: dropout of whole channels
    (``nn.Dropout2d``), whose neighbours are dropped together, is refused, and so is every other kind of dropout.

    Args:
        model: a network that ``torch.fx`` can trace; left as it was, flags and statistics included.
        rates: dropout rate by the name of an ``nn.Dropout``; modules that are not named drop nothing.

    Raises:
        UserError: the network cannot be traced, a name is no dropout of this kind, or dropout meets an operation
            without a rule.
    """

    def __init__(self, model: nn.Module, rates: dict[str, float]) -> None:
        try:
            with eval_mode(model):
                traced = fx.symbolic_trace(model)
        except Exception as error:  # tracing runs the user's code
            raise UserError(
                f"moments cannot be propagated: {type(model).__name__} cannot be traced: {' '.join(str(error).split())}"
            ) from error
        super().__init__(traced)
        self.rates = rates
        called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
        for name in rates:
            kind = type(traced.get_submodule(name)) if name in called else None
            if kind is not nn.Dropout:
                what = "functional dropout or none" if kind is None else kind.__name__
                raise UserError(
                    f"moments cannot be propagated through the dropout at {name!r}, which is {what}: the derivation "
                    "covers nn.Dropout"
                )

    @torch.no_grad()
    def moments(self, *inputs: Any) -> Moments:
        """Mean and variance ``(rows, outputs)`` of the output."""
        assert isinstance(self.module, nn.Module)
        with eval_mode(self.module):
            out = self.run(*inputs)
        return out if isinstance(out, Moments) else Moments(out, torch.zeros_like(out))

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One module: by its rule where its input is random."""
        module = self.fetch_attr(target)
        rate = self.rates.get(target, 0.0)
        x = args[0] if args else None
        if rate and isinstance(x, Tensor):
            x = Moments(x, torch.zeros_like(x))
        if not isinstance(x, Moments) or len(args) > 1 or kwargs:
            if _are_random((*args, *kwargs.values())):
                raise self._no_rule(type(module).__name__)
            return module(*args, **kwargs)
        if rate:
            return Moments(x.mean, (x.variance + rate * x.mean.square()) / (1 - rate))
        return self._module(module, x)

    def _module(self, module: nn.Module, x: Moments) -> Moments:
        if isinstance(module, nn.Linear):
            return Moments(module(x.mean), F.linear(x.variance, module.weight.square()))
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.padding_mode == "zeros":
            squared = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            apply: Any = F.conv2d if isinstance(module, nn.Conv2d) else F.conv1d
            return Moments(
                module(x.mean), apply(x.variance, module.weight.square(), None, groups=module.groups, **squared)
            )
        if isinstance(module, nn.ReLU):
            return relu_moments(x)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            factor = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight)
            return Moments(module(x.mean), x.variance * factor.square().view(1, -1, *[1] * (x.mean.ndim - 2)))
        if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.MaxPool2d):
            return self._pooled(module, x)
        if isinstance(module, nn.Flatten):
            return Moments(module(x.mean), module(x.variance))
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
            return x
        raise self._no_rule(type(module).__name__)

    def _pooled(self, module: nn.Module, x: Moments) -> Moments:
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            mean, where = F.max_pool2d(
                x.mean,
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                module.ceil_mode,
                return_indices=True,
            )
            return Moments(mean, x.variance.flatten(2).gather(2, where.flatten(2)).view_as(mean))
        if isinstance(module, nn.AvgPool2d) and module.divisor_override is None and not module.ceil_mode:
            size = module.kernel_size
            if module.count_include_pad or module.padding in (0, (0, 0)):
                return Moments(
                    module(x.mean), module(x.variance) / (size * size if isinstance(size, int) else size[0] * size[1])
                )
        if isinstance(module, nn.AdaptiveAvgPool2d):
            mean = module(x.mean)
            if all(before % after == 0 for before, after in zip(x.mean.shape[-2:], mean.shape[-2:], strict=True)):
                elements = x.mean.shape[-2:].numel() // mean.shape[-2:].numel()
                return Moments(mean, module(x.variance) / elements)
        raise self._no_rule(f"{type(module).__name__} as it is set here")

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One function: by its rule where an argument is random."""
        return self._function(getattr(target, "__name__", str(target)), target, args, kwargs)

    def call_method(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One method of a tensor, likewise."""
        return self._function(target, lambda x, *rest, **options: getattr(x, target)(*rest, **options), args, kwargs)

    def _function(self, name: str, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not _are_random((*args, *kwargs.values())):
            return function(*args, **kwargs)
        if not args or _are_random((*(args[1:] if name not in _SUMS else ()), *kwargs.values())):
            raise self._no_rule(name)
        x, rest = args[0], args[1:]
        if name in _SUMS and len(args) == 2 and not kwargs and rest[0] is not x:
            means = [value.mean if isinstance(value, Moments) else value for value in args]
            variances = [value.variance for value in args if isinstance(value, Moments)]
            mean = means[0] + means[1]
            return Moments(mean, sum(variances[1:], variances[0]).expand_as(mean))
        if name in ("cat", "concat") and isinstance(x, tuple | list):
            both = [value if isinstance(value, Moments) else Moments(value, torch.zeros_like(value)) for value in x]
            return Moments(
                function([value.mean for value in both], *rest, **kwargs),
                function([value.variance for value in both], *rest, **kwargs),
            )
        if isinstance(x, Moments) and name in ("relu", "relu_"):
            return relu_moments(x)
        if isinstance(x, Moments) and name in _SHAPES:
            return Moments(function(x.mean, *rest, **kwargs), function(x.variance, *rest, **kwargs))
        if isinstance(x, Moments) and name in _FACTS and not (name == "getattr" and rest[0] not in ("shape", "ndim")):
            return function(x.mean, *rest, **kwargs)
        raise self._no_rule(name)

    @staticmethod
    def _no_rule(name: str) -> UserError:
        return UserError(f"moments cannot be propagated through {name}: there is no rule for it")


def _are_random(values: Any) -> bool:
    """Whether a random value is among the arguments, in lists of them too."""
    return any(
        isinstance(value, Moments) or (isinstance(value, tuple | list) and _are_random(value)) for value in values
    )


def relu_moments(x: Moments) -> Moments:
    """Mean and variance of the positive part of a Gaussian."""
    deviation = x.variance.clamp(min=0).sqrt()
    certain = deviation < 1e-12
    safe = torch.where(certain, torch.ones_like(deviation), deviation)
    alpha = x.mean / safe
    density = torch.exp(-0.5 * alpha.square()) / (2 * torch.pi) ** 0.5
    below = torch.special.ndtr(alpha)
    mean = x.mean * below + safe * density
    second = (x.mean.square() + x.variance) * below + x.mean * safe * density
    return Moments(
        torch.where(certain, x.mean.clamp(min=0), mean),
        torch.where(certain, torch.zeros_like(mean), (second - mean.square()).clamp(min=0)),
    )
