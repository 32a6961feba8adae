"""Calling any network on any inputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import UserError
from tenfold.taps import first_tensor

Inputs = Any
"""What a network is called with: a tensor; a tuple or list, which gives positional arguments; or a dict, which gives
arguments by name. Every tensor's first axis is the batch."""

Chooser = Callable[[Any], Tensor]
"""Picks the prediction from what a network gives."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model`` on ``inputs``, see ``Inputs``."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


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


def numbered(batches: Iterable[Any]) -> Iterator[tuple[Inputs, Tensor]]:
    """``(inputs, ids)`` of batches that are pairs of inputs and int64 ids, or inputs alone, which are counted."""
    count = 0
    for batch in batches:
        if isinstance(batch, tuple | list) and len(batch) == 2:
            inputs, ids = batch
            rows = batch_size(inputs)
            if isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.shape == (rows,):
                yield inputs, ids
                continue
        rows = batch_size(batch)
        yield batch, torch.arange(count, count + rows)
        count += rows


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
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU where it has none."""
    first = next(iter([*model.parameters()][:1] or [*model.buffers()][:1]), None)
    return torch.device("cpu") if first is None else first.device


def mask_of(inputs: Inputs) -> Tensor | None:
    """The ``attention_mask`` of inputs by name, as truth values; ``None`` where there is none."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


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
