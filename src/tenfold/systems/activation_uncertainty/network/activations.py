"""Which activations a network has, and where they can be read: found by running it once.

A tap is written ``path``, ``path#run`` (of a module that runs several times), or ``path|function``: the output of
``path`` that goes into a functional activation, which is applied again to what is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.models.taps import collect_taps
from tenfold.systems.activation_uncertainty.network.calling import Inputs, call, eval_mode
from tenfold.systems.activation_uncertainty.network.dropout_sites import ordinary_layers
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "selu": F.selu,
    "celu": F.celu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
"""Activations by name."""

_CALLS: dict[Any, str] = {
    function: name for name, function in FUNCTIONS.items() if name not in ("quick_gelu", "sigmoid", "softplus")
} | {
    torch.relu: "relu",
    Tensor.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu_: "relu",
    F.relu_: "relu",
    F.tanh: "tanh",
    Tensor.tanh: "tanh",
    F.elu_: "elu",
    F.leaky_relu_: "leaky_relu",
    F.selu_: "selu",
}
_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Hardswish,
    nn.Mish,
    nn.SELU,
    nn.CELU,
    nn.Tanh,
)
_LAST_AXIS = (F.linear,)
_FIRST_AXIS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, torch.conv1d, torch.conv2d)


@dataclass(frozen=True)
class Tap:
    """One place where activations are read.

    Attributes:
        path: the module, with ``#run`` where it runs several times.
        function: activation that is applied to what the module gives, by its name in ``FUNCTIONS``; none where
            the module gives the activation itself.
        channels_first: whether units lie along axis 1 (convolutions) and not along the last.
        level: activation of an input of 0: a unit is on above it.
        shape: of the output without the batch, of the example.
    """

    path: str
    function: str | None = None
    channels_first: bool = False
    level: float = 0.0
    shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """As a user writes it."""
        return self.path + (f"|{self.function}" if self.function else "")


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a hidden unit's non-linearity: torch's, or another library's by its name."""
    name = type(module).__name__
    childless = next(module.children(), None) is None
    return isinstance(module, _MODULES) or (childless and name.startswith(("GELU", "QuickGELU", "NewGELU", "FastGELU")))


class _Watch(TorchFunctionMode):
    """Notes activations in the order of execution, and which modules give their inputs and outputs."""

    def __init__(self, stack: ModuleStack, model: nn.Module) -> None:
        super().__init__()
        self.stack = stack
        self.modules = dict(model.named_modules())
        self.runs: dict[str, int] = {}
        self.givers: dict[int, str] = {}  # id of a tensor -> the module that gave it, with its run
        self.kept: list[Any] = []  # ids stay unique while their objects live
        self.first_axis = False
        self.axes: dict[str, bool] = {}
        self.found: list[tuple[str, str | None, int]] = []  # path, function, id of the activation
        self.values: dict[int, tuple[int, ...]] = {}

    def enter(self, path: str) -> None:
        pass

    def leave(self, path: str, output: Any) -> None:
        run = self.runs.get(path, 0)
        self.runs[path] = run + 1
        tensor = next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if tensor is None:
            return
        self.kept.append(tensor)
        self.axes[f"{path}#{run}"] = self.first_axis
        self.values[id(tensor)] = tuple(tensor.shape[1:])
        if is_activation(self.modules[path]):
            self.found.append((f"{path}#{run}", None, id(tensor)))
        if not isinstance(self.modules[path], _DropoutNd | nn.Identity):  # these give what they got
            self.givers.setdefault(id(tensor), f"{path}#{run}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _LAST_AXIS:
            self.first_axis = False
        elif func in _FIRST_AXIS:
            self.first_axis = True
        name = _CALLS.get(func)
        if name is not None and not is_activation(self.modules.get(self.stack.current, nn.Identity())):
            self.kept.append((args[0], output))
            # In place, the module that gave the input seems to give the activation; it is read before that happens.
            self.found.append((self.givers.get(id(args[0]), ""), name, 0 if output is args[0] else id(output)))
        return output


def _watch(model: nn.Module, example: Inputs) -> _Watch:
    stack = ModuleStack()
    watch = _Watch(stack, model)
    with torch.no_grad(), eval_mode(model), ordinary_layers(), stack.follow(model, [watch]), watch:
        call(model, example)
    return watch


def find_activations(model: nn.Module, example: Inputs) -> list[Tap]:
    """All hidden activations of a network that can be read at a module, in the order of execution.

    These are the outputs of activation modules, and of modules whose output goes straight into a functional
    activation or is one. What can be read at no module (``relu(a + b)`` in the middle of a ``forward``) is left out.

    Args:
        model: any network; left as it was.
        example: a small batch.
    """
    watch = _watch(model, example)
    paths: list[tuple[str, str | None]] = []
    for giver, function, activation in watch.found:
        if function is None:
            paths.append((giver, None))
        elif activation in watch.givers and watch.givers[activation].partition("#")[0]:
            paths.append((watch.givers[activation], None))  # a module returns the activation itself
        elif giver.partition("#")[0]:
            paths.append((giver, function))
    named = [(_short(path, watch), function) for path, function in dict.fromkeys(paths)]
    return [_tap(model, watch, path, function, example) for path, function in named]


def named_taps(model: nn.Module, example: Inputs, names: list[str]) -> list[Tap]:
    """The taps that a user names, checked by running the network.

    Raises:
        UserError: a module or a function does not exist, does not run, or runs several times.
    """
    watch = _watch(model, example)
    taps = []
    for name in names:
        path, _, function = name.partition("|")
        if function and function not in FUNCTIONS:
            raise UserError(f"tap {name!r}: there is no activation {function!r}; there are: {', '.join(FUNCTIONS)}")
        taps.append(_tap(model, watch, path, function or None, example))
    return taps


def _short(path: str, watch: _Watch) -> str:
    """Without the run where there is only one."""
    name, _, _ = path.partition("#")
    return name if watch.runs[name] == 1 else path


def _tap(model: nn.Module, watch: _Watch, path: str, function: str | None, example: Inputs) -> Tap:
    with torch.no_grad(), eval_mode(model), ordinary_layers(), collect_taps(model, [path]) as outputs:
        call(model, example)
    if path not in outputs:
        raise UserError(f"tap {path!r} does not run in a forward pass; tap another module")
    module = watch.modules[path.partition("#")[0]]
    shape = tuple(outputs[path].shape[1:])
    if not shape or not outputs[path].is_floating_point():
        raise UserError(
            f"tap {path!r} gives {outputs[path].dtype} of shape {tuple(outputs[path].shape)}, no activations"
        )
    level = 0.0
    if function:
        level = float(FUNCTIONS[function](torch.zeros(1)))
    elif isinstance(module, nn.Sigmoid | nn.Hardsigmoid | nn.Softplus):
        level = float(module(torch.zeros(1)))
    axis = watch.axes.get(path if "#" in path else f"{path}#0", False)
    return Tap(path, function, channels_first=axis and len(shape) > 1, level=level, shape=shape)
