"""What a network draws at random in training beside the dropout that is known: found by running it without that.

Dropout may be written in many ways (``torch.bernoulli``, ``torch.rand_like(x) < p``, numpy): nothing finds the rate and
the units of all of them. An uncertainty that leaves some out would be too small, and nobody would see it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.errors import UserError
from tenfold.models.taps import first_tensor
from tenfold.systems.activation_uncertainty.network.calling import Inputs, call, eval_mode
from tenfold.systems.activation_uncertainty.network.dropout_sites import (
    ATTENTION,
    DROPOUT_FUNCTIONS,
    dropout_arguments,
    is_normalization,
    ordinary_layers,
    rate_attribute,
)
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack

_PASSES = 12


def refuse_unseen_noise(model: nn.Module, example: Inputs) -> None:
    """Refuse a network whose training passes stay random when all dropout that is known is off.

    Args:
        model: any network; left as it was, flags, rates, buffers and random states included. One that cannot be run
            in training mode (it may want labels there) is not looked at.
        example: a small batch, see ``Inputs``.

    Raises:
        UserError: names the module that draws, and what to do.
    """
    with _training_without_dropout(model):
        try:
            with ModuleStack().follow(model) as stack, _Draws(stack) as draws:
                first = _output(model, example, seed=0)
            if not draws.paths and not draws.others_drew():
                return
            outputs = (_output(model, example, seed=seed) for seed in range(1, _PASSES))
            if all(torch.equal(first, output) for output in outputs):
                return  # what was drawn decided nothing, as at a rate of 0
        except UserError:
            return
    where = f" in {draws.paths[0] or 'its own forward'!r}" if draws.paths else ""
    raise UserError(
        f"{type(model).__name__} draws random numbers in training{where} that are no dropout that can be switched: "
        "write them as nn.Dropout or F.dropout, or name the modules whose dropout is to count with places"
    )


def _output(model: nn.Module, example: Inputs, seed: int) -> Tensor:
    torch.manual_seed(seed)
    found = first_tensor(call(model, example))
    return torch.zeros(0) if found is None else found.nan_to_num()


class _Silence(TorchFunctionMode):
    """Calls that drop units drop none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            names = ("dropout_p", "is_causal")
            return func(*args[:4], **{**dict(zip(names, args[4:], strict=False)), **kwargs, "dropout_p": 0.0})
        if func in DROPOUT_FUNCTIONS:
            return func(dropout_arguments(args, kwargs)[0], 0.0, False)
        return func(*args, **kwargs)


class _Draws(TorchDispatchMode):
    """Notes the modules in which torch draws random numbers, and whether numpy or Python did."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.paths: list[str] = []
        self._before = _states_of_others()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and self.stack.current not in self.paths:
            self.paths.append(self.stack.current)
        return func(*args, **(kwargs or {}))

    def others_drew(self) -> bool:
        """Whether the generators of numpy and Python are no longer where they were."""
        return _states_of_others() != self._before


def _states_of_others() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the global one is what networks would use)
    return kind, np.asarray(keys).tobytes(), *rest, random.getstate()


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    """All modules train but normalization, and known dropout is off; everything is put back at the end."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    rates = [(m, name, getattr(m, name)) for m in model.modules() if (name := rate_attribute(m)) and hasattr(m, name)]
    try:
        with torch.no_grad(), eval_mode(model), torch.random.fork_rng(), ordinary_layers(), _Silence():
            for module in model.modules():
                module.training = not is_normalization(module)
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
        for buffer, saved in buffers:
            buffer.data.copy_(saved)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
