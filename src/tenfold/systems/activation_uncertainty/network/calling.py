"""Calling any network on any inputs."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.models.taps import first_tensor

Inputs = Any
"""What a network is called with: a tensor; a tuple or list, which gives positional arguments; or a mapping, which gives
arguments by name, or is the one argument of a network that takes a batch as one mapping. Every tensor's first axis is
the batch."""

Chooser = Callable[[Any], Tensor]
"""Picks the prediction from what a network gives."""

_MASKS = {"attention_mask": False, "src_key_padding_mask": True, "key_padding_mask": True}
"""Arguments that say which tokens are valid, and whether they are true where a token is not."""


def arguments_of(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of ``model`` that the inputs stand for, by the signature of its ``forward``.

    Raises:
        UserError: the network does not take so many arguments, or not by these names.
    """
    if not isinstance(inputs, Mapping | tuple | list):
        return (inputs,), {}
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    spread = () if named else tuple(inputs)
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code has none
        return spread, named
    if all(isinstance(name, str) for name in named) and _binds(signature, spread, named):
        return spread, named
    whole = named or inputs
    if _binds(signature, (whole,), {}):
        return (whole,), {}
    raise UserError(
        f"{type(model).__name__} takes ({', '.join(signature.parameters)}); the inputs are {describe(inputs)}"
    )


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def describe(inputs: Inputs) -> str:
    """How inputs are built, for messages: ``a tensor``, ``2 values``, ``the values input_ids, attention_mask``."""
    if isinstance(inputs, Tensor):
        return f"a tensor {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return f"the values {', '.join(map(str, inputs))}"
    if isinstance(inputs, tuple | list):
        return f"{len(inputs)} values in a {type(inputs).__name__}"
    return f"a {type(inputs).__name__}"


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model`` on ``inputs``, see ``Inputs``.

    Raises:
        UserError: the network cannot be called on them.
    """
    args, kwargs = arguments_of(model, inputs)
    try:
        return model(*args, **kwargs)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the network's own code
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{type(model).__name__} cannot be called on {describe(inputs)}: {reason}") from error


def main_output(raw: Any, choose: Chooser | None = None) -> Tensor:
    """The tensor that is the prediction.

    Args:
        raw: what the network gives.
        choose: picks it; by default a tensor is itself, an output with ``logits`` (transformers) gives these, and of
            anything else it is the first tensor.

    Raises:
        UserError: there is no tensor.
    """
    found = choose(raw) if choose is not None else raw
    if not isinstance(found, Tensor):
        found = getattr(found, "logits", None)
    if not isinstance(found, Tensor):
        found = first_tensor(raw)
    if found is None:
        raise UserError(f"the network gives {type(raw).__name__}, which holds no tensor: choose one with output")
    return found


def batch_size(inputs: Inputs) -> int:
    """Size of the first axis of the first tensor.

    Raises:
        UserError: there is no tensor, or it has no axis.
    """
    first = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    if first is None or first.ndim == 0:
        raise UserError(f"the inputs hold no batch of tensors: got {type(inputs).__name__}")
    return len(first)


def repeat_rows(values: Any, times: int, rows: int) -> Any:
    """All tensors with ``rows`` rows, one copy after the other ``times`` times; everything else as it is."""
    if times == 1:
        return values

    def repeat(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != rows:
            return value
        return value.repeat(times, *[1] * (value.ndim - 1))

    return pytree.tree_map(repeat, values)


def to_device(values: Any, device: torch.device | str) -> Any:
    """All tensors on ``device``."""
    values = dict(values) if isinstance(values, Mapping) else values  # whose tensors pytree finds
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU where it has none."""
    first = next(iter([*model.parameters()][:1] or [*model.buffers()][:1]), None)
    return torch.device("cpu") if first is None else first.device


def mask_places(model: nn.Module) -> dict[str, int]:
    """Positions of the arguments of ``model`` that say which tokens are valid; see ``valid_tokens``."""
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return {}
    return {name: names.index(name) for name in _MASKS if name in names}


def valid_tokens(places: Mapping[str, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """``(batch, tokens)``, true for valid tokens, from the arguments of a call; ``None`` where there is no mask.

    Args:
        places: of the network, see ``mask_places``.
        args: positional arguments; a single mapping is looked into.
        kwargs: arguments by name.
    """
    named = args[0] if len(args) == 1 and isinstance(args[0], Mapping) else kwargs
    for name, inverted in _MASKS.items():
        mask = named.get(name)
        if mask is None and name in places and places[name] < len(args):
            mask = args[places[name]]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return ~mask.bool() if inverted else mask.bool()
    return None


def mask_of(model: nn.Module, inputs: Inputs) -> Tensor | None:
    """Valid tokens ``(batch, tokens)`` as the inputs' attention mask says, given by name or by position."""
    args, kwargs = arguments_of(model, inputs)
    return valid_tokens(mask_places(model), args, kwargs)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in eval mode; afterwards each has the flag that it had, whatever happened."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False  # not .eval(), which a module may override
        yield
    finally:
        for module, flag in flags:
            module.training = flag
