"""Which modules of a network are running."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


class ModuleStack:
    """Which modules are running: paths from the outermost to the innermost."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    @property
    def current(self) -> str:
        """Path of the innermost running module; the model itself is ``""``."""
        return self.paths[-1] if self.paths else ""

    @contextmanager
    def follow(self, model: nn.Module, observers: Sequence[Any] = ()) -> Iterator["ModuleStack"]:
        """Follow the modules of ``model`` within the block.

        Args:
            model: the network.
            observers: objects whose ``enter(path)`` and ``leave(path, output)`` are called, with the module on the
                stack in both.
        """
        with ExitStack() as handles:
            for path, module in model.named_modules():
                handles.callback(module.register_forward_pre_hook(self._enter(path, observers)).remove)
                handles.callback(module.register_forward_hook(self._leave(path, observers), always_call=True).remove)
            yield self
        self.paths.clear()

    def _enter(self, path: str, observers: Sequence[Any]) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            self.paths.append(path)
            for observer in observers:
                observer.enter(path)

        return hook

    def _leave(self, path: str, observers: Sequence[Any]) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for observer in observers:
                observer.leave(path, output)
            if self.paths:
                self.paths.pop()

        return hook
