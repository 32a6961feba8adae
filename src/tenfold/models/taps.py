"""Hooks on named layers: read, or replace, what a module inside a network gives, without touching the network.


    with collect_taps(model, ["layer1", "layer3"]) as outputs:
        model(x)
    outputs["layer3"]  # (batch, channels, height, width)

The hooks live as long as the ``with`` block: outside of it the network is the user's own, whatever happened inside.
"""

import difflib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold.errors import UserError

Visit = Callable[[str, Tensor], Tensor | None]
"""What is done at a tap: takes its path and its tensor; a tensor that it returns replaces the module's output."""


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module that ``model.named_modules()`` calls ``path``, such as ``"encoder.layers.3"``.

    Raises:
        UserError: there is no such module.
    """
    try:
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    names = [name for name, _ in model.named_modules() if name]
    close = [name for name in names if path and name.endswith(f".{path}")] or difflib.get_close_matches(path, names)
    guess = f"did you mean {' or '.join(map(repr, close[:3]))}? " if close else ""
    raise UserError(
        f"{type(model).__name__} has no module {path!r}: {guess}print([name for name, _ in model.named_modules()]) "
        "shows the names"
    )


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of a module's output: of a tensor itself, of a (nested) tuple, list, dict or model output."""
    return next((leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)


@contextmanager
def tap_hooks(model: nn.Module, paths: Sequence[str], visit: Visit, *, this_thread: bool = False) -> Iterator[None]:
    """Within the block, call ``visit`` whenever a named module has run, in the order of execution.

    An output that is not one tensor is represented by its first tensor (``first_tensor``), as transformer layers
    give ``(hidden states, attentions)``; a replacement takes that tensor's place.

    Args:
        model: the network.
        paths: names of modules, see ``find_module``. Of a module that runs several times in a forward pass, such
            as a shared activation, ``name#n`` is the n-th run, counted from 0.
        visit: called with the name and the tensor; what it returns, if anything, replaces the tensor.
        this_thread: leave passes alone that other threads make through the same network meanwhile.

    Raises:
        UserError: a module does not exist, gives no tensor, or runs twice within the block although no run is named
            (its output would be ambiguous: use one block per forward pass).
    """
    runs: dict[str, int] = {}
    thread = threading.get_ident()
    wanted: dict[str, set[str]] = {}
    for path in paths:
        wanted.setdefault(path.partition("#")[0], set()).add(path)

    def hook(name: str, module: nn.Module, arguments: Any, output: Any) -> Any:
        if this_thread and threading.get_ident() != thread:
            return None
        run = runs.get(name, 0)
        runs[name] = run + 1
        path = f"{name}#{run}"
        if path not in wanted[name]:
            if name not in wanted[name]:
                return None
            if run:
                raise UserError(
                    f"tap {name!r} runs more than once in a forward pass; tap a module that runs once, or one run: "
                    f"{name}#0, {name}#1 ..."
                )
            path = name
        if isinstance(output, Tensor):
            return visit(path, output)
        leaves, structure = pytree.tree_flatten(output)
        position = next((n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
        if position is None:
            raise UserError(f"tap {path!r} gives {type(output).__name__}, which holds no tensor; tap another module")
        replacement = visit(path, leaves[position])
        if replacement is None:
            return None
        leaves[position] = replacement
        return pytree.tree_unflatten(leaves, structure)

    with ExitStack() as handles:
        for name in wanted:
            handles.callback(find_module(model, name).register_forward_hook(partial(hook, name)).remove)
        yield


@contextmanager
def collect_taps(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, gather the outputs of named modules during one forward pass.

    Args:
        model: the network.
        paths: names of modules, see ``find_module``.

    Yields:
        The outputs by name, in the order of execution; a module that did not run has no entry. An output that is not
        one tensor is represented by its first tensor.

    Raises:
        UserError: see ``tap_hooks``.
    """
    outputs: dict[str, Tensor] = {}
    with tap_hooks(model, paths, outputs.__setitem__):
        yield outputs
