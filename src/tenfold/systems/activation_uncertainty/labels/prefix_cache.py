"""What a network computes before its first random operation, computed once and played back in later passes.

No tracing: the modules that finish before the first place of dropout are found by watching one pass; in the passes
that follow their ``forward`` gives what was recorded. It works for any network, and the numbers are the same bits.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tenfold.systems.activation_uncertainty.network.calling import Inputs, call, repeat_rows
from tenfold.systems.activation_uncertainty.network.dropout import INPUTS, DropoutController
from tenfold.systems.activation_uncertainty.network.dropout_sites import ATTENTION, DROPOUT_FUNCTIONS, DropoutSite
from tenfold.systems.activation_uncertainty.network.module_stack import ModuleStack


class _Watch(TorchFunctionMode):
    """Order of events within one pass: when modules were entered and left, when each first dropped units by a call.

    Keeps the outputs, too, to tell which of them were changed in place after they had been given.
    """

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.clock = 0
        self.entered: dict[str, int] = {}
        self.left: dict[str, list[int]] = {}
        self.calls: dict[str, int] = {}
        self.outputs: list[tuple[str, Tensor, int]] = []

    def enter(self, path: str) -> None:
        self.clock += 1
        self.entered.setdefault(path, self.clock)

    def leave(self, path: str, output: Any) -> None:
        self.clock += 1
        self.left.setdefault(path, []).append(self.clock)
        self.outputs += [(path, t, t._version) for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DROPOUT_FUNCTIONS or func is ATTENTION:
            self.clock += 1
            self.calls.setdefault(self.stack.current, self.clock)
        return func(*args, **(kwargs or {}))

    @property
    def changed(self) -> set[str]:
        """Modules whose output was changed in place after they had given it."""
        return {path for path, tensor, version in self.outputs if tensor._version != version}


class PrefixCache:
    """Records the deterministic beginning of a network and plays it back.

    Args:
        dropout: knows the network and its first random place.
        example: a small batch.

    Attributes:
        modules: the modules that are played back; empty where nothing comes before the first dropout.
    """

    def __init__(self, dropout: DropoutController, example: Inputs) -> None:
        self.model = dropout.model
        stack = ModuleStack()
        watch = _Watch(stack)
        with torch.no_grad(), dropout.on(seed=0), stack.follow(self.model, [watch]), watch:
            call(self.model, example)
        self.modules = _prefix_modules(watch, dropout)
        self._changed = watch.changed
        self._recorded: dict[str, list[Any]] = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within the block, one pass without dropout is recorded."""
        self._recorded = {path: [] for path in self.modules}
        handles = [self.model.get_submodule(path).register_forward_hook(self._keep(path)) for path in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            self._recorded[path].append(self._own(path, output))

        return hook

    def _own(self, path: str, output: Any) -> Any:
        """A copy, of what is changed in place later on."""
        if path not in self._changed:
            return output
        return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, output)

    @contextmanager
    def replay(self, rows: int, repeats: int = 1) -> Iterator[None]:
        """Within the block, recorded modules compute nothing: they give what they gave.

        Args:
            rows: batch size of what was recorded.
            repeats: how many times the batch is repeated in a pass.
        """
        with ExitStack() as restored:
            for path, outputs in self._recorded.items():
                module = self.model.get_submodule(path)
                own = module.__dict__.get("forward")  # a module may already have one that is not its class's
                if own is None:
                    restored.callback(delattr, module, "forward")
                else:
                    restored.callback(setattr, module, "forward", own)
                module.forward = self._player(path, [repeat_rows(output, repeats, rows) for output in outputs])
            yield

    def _player(self, path: str, outputs: list[Any]) -> Any:
        position = -1

        def forward(*_: Any, **__: Any) -> Any:
            nonlocal position
            position = (position + 1) % len(outputs)
            return self._own(path, outputs[position])

        return forward


def _prefix_modules(watch: _Watch, dropout: DropoutController) -> list[str]:
    """The largest modules all of whose calls end before the first random operation begins."""
    if any(site.path == INPUTS for site in dropout.sites):
        return []
    first = min(_first_draw(watch, site) for site in dropout.sites)
    random = {site.path for site in dropout.sites if site.kind != "added"}
    ready = {path for path, times in watch.left.items() if path not in random and times[-1] <= first}
    return [
        path
        for path in watch.left
        if path in ready and path and not any(path.startswith(f"{other}.") for other in ready if other)
    ]


def _first_draw(watch: _Watch, site: DropoutSite) -> int:
    if site.kind == "added":  # after its module, which is still part of the beginning
        return watch.left.get(site.path, [watch.clock])[0]
    return watch.calls.get(site.path, watch.entered.get(site.path, watch.clock))
