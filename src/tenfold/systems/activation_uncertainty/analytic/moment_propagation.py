"""Mean and variance of the outputs, layer by layer, in one pass: no sampling, nothing learnt."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tenfold.errors import UserError


@dataclass
class Moments:
    """Mean and variance of a random tensor, element by element; units are taken for independent."""

    mean: Tensor
    variance: Tensor


class MomentPropagation(fx.Interpreter):
    """Mean and variance through a network, layer by layer (Brach, Sick, Duerr 2020), in one pass.

    Known are dropout, linear and convolution layers, ReLU of a Gaussian, normalization in eval mode, average pooling,
    maximum pooling (the variance of the largest mean), flattening, concatenation and sums; anything else may only meet
    values that are not random.

    Args:
        model: a network that ``torch.fx`` can trace.
        rates: dropout rate by the name of the module; modules that are not named drop nothing.

    Raises:
        UserError: the network cannot be traced, or dropout meets an operation without a rule.
    """

    def __init__(self, model: nn.Module, rates: dict[str, float]) -> None:
        training = model.training
        try:
            traced = fx.symbolic_trace(model.eval())
        except Exception as error:  # tracing runs the user's code
            raise UserError(
                f"moments cannot be propagated: {type(model).__name__} cannot be traced: {error}"
            ) from error
        finally:
            model.train(training)
        super().__init__(traced)
        self.rates = rates

    @torch.no_grad()
    def moments(self, *inputs: Any) -> Moments:
        """Mean and variance ``(rows, outputs)`` of the output."""
        out = self.run(*inputs)
        return out if isinstance(out, Moments) else Moments(out, torch.zeros_like(out))

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One module: by its rule where its input is random."""
        module = self.fetch_attr(target)
        rate = self.rates.get(target, 0.0)
        x = args[0] if args else None
        if rate and isinstance(x, Tensor):
            x = Moments(x, torch.zeros_like(x))
        if not isinstance(x, Moments):
            if any(isinstance(value, Moments) for value in (*args, *kwargs.values())):
                raise self._no_rule(type(module).__name__)
            return module.eval()(*args, **kwargs)
        if rate:
            return Moments(x.mean, (x.variance + rate * x.mean.square()) / (1 - rate))
        return self._module(module, x)

    def _module(self, module: nn.Module, x: Moments) -> Moments:
        if isinstance(module, nn.Linear):
            return Moments(module(x.mean), F.linear(x.variance, module.weight.square()))
        if isinstance(module, nn.Conv1d | nn.Conv2d):
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
        if isinstance(module, nn.AvgPool2d):
            size = module.kernel_size
            elements = size * size if isinstance(size, int) else size[0] * size[1]
            return Moments(module(x.mean), module(x.variance) / elements)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            mean = module(x.mean)
            return Moments(mean, module(x.variance) * mean[0, 0].numel() / x.mean[0, 0].numel())
        if isinstance(module, nn.MaxPool2d):
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
        if isinstance(module, nn.Flatten | nn.Identity | nn.modules.dropout._DropoutNd):
            if isinstance(module, nn.Flatten):
                return Moments(module(x.mean), module(x.variance))
            return x
        raise self._no_rule(type(module).__name__)

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One function: by its rule where an argument is random."""
        return self._function(getattr(target, "__name__", str(target)), target, args, kwargs)

    def call_method(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """One method of a tensor, likewise."""
        return self._function(target, lambda x, *rest, **options: getattr(x, target)(*rest, **options), args, kwargs)

    def _function(self, name: str, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        parts = [*args[0]] if args and isinstance(args[0], tuple | list) else [*args]
        if not any(isinstance(value, Moments) for value in parts):
            return function(*args, **kwargs)
        x = args[0]
        if isinstance(x, Moments) and name in ("relu", "relu_"):
            return relu_moments(x)
        if isinstance(x, Moments) and name in ("flatten", "reshape", "view", "squeeze", "unsqueeze", "getitem"):
            rest = args[1:]
            return Moments(function(x.mean, *rest, **kwargs), function(x.variance, *rest, **kwargs))
        if name in ("cat", "concat"):
            both = [value if isinstance(value, Moments) else Moments(value, torch.zeros_like(value)) for value in x]
            rest = args[1:]
            return Moments(
                function([value.mean for value in both], *rest, **kwargs),
                function([value.variance for value in both], *rest, **kwargs),
            )
        if name in ("add", "iadd", "add_") and len(args) == 2:
            means = [value.mean if isinstance(value, Moments) else value for value in args]
            variances = [value.variance for value in args if isinstance(value, Moments)]
            return Moments(means[0] + means[1], sum(variances[1:], variances[0]))
        if isinstance(x, Moments) and name == "dropout":
            raise UserError("moments cannot be propagated through functional dropout; make it a module")
        raise self._no_rule(name)

    @staticmethod
    def _no_rule(name: str) -> UserError:
        return UserError(f"moments cannot be propagated through {name}: there is no rule for it")


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
