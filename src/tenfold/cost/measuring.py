"""What a module costs: parameters, operations, latency, memory.

Nothing here leaves a trace on what it measures: train flags, BatchNorm statistics, random states and threads are as
before, and measuring twice gives the same.
"""

import statistics
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tenfold.cost.flop_formulas import FORMULAS, UncountedKernels
from tenfold.errors import TenfoldWarning

Convention = Literal["torch", "multiply-adds", "msdnet"]
"""How operations are counted.

``torch``: as PyTorch's ``FlopCounterMode``, with the formulas of ``tenfold.cost.flop_formulas`` where it has none: two
per multiply-add of products, such as linear layers, convolutions, attention and recurrent layers. Nothing for pointwise
functions, normalization, pooling, reductions and moving of data.
``multiply-adds``: half of it.
``msdnet``: what the counter of MSDNet, RANet and BoostNet counts: multiply-adds of ``Conv2d`` without bias, weights
and biases of ``Linear``, elements of ``ReLU``, window elements of ``AvgPool2d`` and ``MaxPool2d``, input elements of
``AdaptiveAvgPool2d``, nothing for batch norm; functional operations (interpolation) are not seen.
"""


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, shared ones once.

    Args:
        module: any module.
        trainable_only: count only those that require a gradient.
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def count_flops(
    call: Callable[..., object],
    *inputs: Any,
    convention: Convention = "torch",
    modules: Iterable[nn.Module] | None = None,
) -> int:
    """Operations that ``call(*inputs)`` executes, in eval mode and without gradients.

    Args:
        call: a module, or anything that runs modules, such as one stage of a network:
            ``count_flops(model.run_stage, 2, state, modules=[model])``.
        inputs: arguments of ``call``. The count is for all of the batch; a batch of one gives the cost per input, and
            a batch of B costs B times as much.
        convention: see ``Convention``.
        modules: the modules that ``call`` runs; only needed where ``call`` is not itself a module.

    Raises:
        ValueError: an unknown convention; ``modules`` is missing; or convention ``msdnet`` meets a module with
            parameters for which it has no rule.

    Warns:
        TenfoldWarning: a kernel ran that may hold products and has no formula, such as one from outside of PyTorch;
            the count is too low by it.

    Example:
        >>> count_flops(nn.Linear(3, 2), torch.zeros(1, 3), convention="multiply-adds")
        6
    """
    if convention not in get_args(Convention):
        raise ValueError(f"convention must be one of {', '.join(get_args(Convention))}; got {convention!r}")
    if modules is None:
        if not isinstance(call, nn.Module):
            raise ValueError("modules must name the modules that call runs, since call is not a module itself")
        modules = [call]
    submodules = [submodule for module in modules for submodule in module.modules()]
    with _untouched(submodules):
        if convention == "msdnet":
            return _count_like_msdnet(call, inputs, submodules)
        with UncountedKernels() as uncounted, FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            call(*inputs)
        total = counter.get_total_flops()
    if uncounted.names:
        names = ", ".join(sorted(uncounted.names))
        warnings.warn(f"the operations of {names} are counted as nothing: they are not known", TenfoldWarning, 2)
    return total // 2 if convention == "multiply-adds" else total


@contextmanager
def _untouched(submodules: Sequence[nn.Module]) -> Iterator[None]:
    flags = [submodule.training for submodule in submodules]
    devices = {p.device for submodule in submodules for p in submodule.parameters(recurse=False) if p.is_cuda}
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng([device.index for device in devices]), torch.no_grad():
        try:
            # The fused encoder layer of eval mode is one operation, which FlopCounterMode takes for nothing.
            torch.backends.mha.set_fastpath_enabled(False)
            for submodule in submodules:
                submodule.training = False  # not .eval(), which a module may override and which would change children
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused_attention)
            for submodule, flag in zip(submodules, flags, strict=True):
                submodule.training = flag


def _count_like_msdnet(call: Callable[..., object], inputs: Sequence[Any], submodules: Sequence[nn.Module]) -> int:
    total = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        nonlocal total
        rule = next((rule for kind, rule in _MSDNET_RULES.items() if isinstance(module, kind)), None)
        if rule is not None:
            total += rule(module, args[0] if args else next(iter(kwargs.values())), output)
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"convention 'msdnet' has no rule for {type(module).__name__}; count with 'torch' or 'multiply-adds'"
            )

    handles = [submodule.register_forward_hook(count, with_kwargs=True) for submodule in dict.fromkeys(submodules)]
    try:
        call(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _convolution(module: Any, x: Tensor, output: Tensor) -> int:
    return output.numel() * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]


def _linear(module: Any, x: Tensor, output: Tensor) -> int:
    rows = output.numel() // module.out_features
    return rows * (module.weight.numel() + (0 if module.bias is None else module.bias.numel()))


def _pooling(module: Any, x: Tensor, output: Tensor) -> int:
    size = module.kernel_size
    height, width = (size, size) if isinstance(size, int) else size
    return output.numel() * height * width


_MSDNET_RULES: dict[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any, Tensor, Tensor], int]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.ReLU: lambda module, x, output: output.numel(),
    (nn.AvgPool2d, nn.MaxPool2d): _pooling,
    nn.AdaptiveAvgPool2d: lambda module, x, output: x.numel(),
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm): lambda module, x, output: 0,
}


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one call.

    Attributes:
        median_ms: median, in milliseconds.
        lower_quartile_ms: a quarter of the calls was faster.
        upper_quartile_ms: a quarter of the calls was slower.
        repeats: number of calls that were timed.
        threads: threads of torch's CPU operations.
    """

    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    repeats: int
    threads: int


def measure_latency(
    call: Callable[[], object],
    *,
    threads: int = 1,
    warmup: int = 5,
    repeats: int = 30,
) -> Latency:
    """Time ``call()``. It runs as it is: wrap it in ``torch.inference_mode`` for the latency of serving.

    Args:
        call: what to time.
        threads: threads of torch's CPU operations while timing; restored afterwards.
        warmup: calls before timing starts.
        repeats: timed calls, at least 2; an accelerator is synchronised around each.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2; got {repeats}")
    from torch.utils.benchmark import timer  # waits for the accelerator, where there is one, before it reads the clock
    from torch.utils.benchmark.utils.common import set_torch_threads

    milliseconds = []
    with set_torch_threads(threads):
        for _ in range(warmup):
            call()
        for _ in range(repeats):
            start = timer()
            call()
            milliseconds.append((timer() - start) * 1000)
    lower, median, upper = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Latency(median, lower, upper, repeats, threads)


def measure_peak_memory(call: Callable[[], object], *, device: torch.device | str = "cpu") -> int:
    """Most bytes that ``call()`` holds at once in new tensors, beyond what was there before (weights, inputs).

    On a CPU it follows the storages of the tensors that PyTorch's operations return, until they die: the same in
    every run, but blind to the workspaces inside kernels and to memory that is not a tensor's. On a CUDA device it is
    what the caching allocator handed out (``torch.cuda.max_memory_allocated``), workspaces included.

    Args:
        call: what to measure; it runs once, as it is.
        device: where ``call`` computes.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveStorages() as storages:
        call()
    return storages.peak


class _LiveStorages(TorchDispatchMode):
    """Follows the bytes of the CPU storages that operations create, through weak references."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):  # not seen yet: it was there before
            self._seen.add(storage)
        output = func(*args, **kwargs)
        for storage in _storages(output):
            if storage not in self._seen:
                self._seen.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return output

    def _release(self, size: int) -> None:
        self._live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu":
            yield value.untyped_storage()
