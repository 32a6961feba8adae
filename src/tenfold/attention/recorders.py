"""How a tap sees a layer: hooks on projections, transformers' attention interface, intercepted calls."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenfold.attention.layers import AttentionLayer, Tap, call, in_eval
from tenfold.errors import UserError

_TRANSFORMERS_TAP = "tenfold_tap"
_CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Reached(BaseException):
    """Raised at the last tap; no ``except Exception`` of a network on the way may take it for an error."""


class _Recorder:
    count: int

    def __init__(self) -> None:
        self.taps: dict[int, Tap] = {}
        self._wanted: set[int] = set()
        self._last: int | None = None
        self._stack = ExitStack()

    def want(self, numbers: set[int], last: int | None) -> None:
        self._wanted, self._last = numbers, last

    def keep(self, number: int, found: Callable[[], Tap]) -> None:
        if number in self._wanted:
            self.taps[number] = found()
        if number == self._last:
            raise Reached

    def __enter__(self) -> "_Recorder":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


class ProjectionRecorder(_Recorder):
    """What the projections give: seen by hooks, and where a layer calls ``linear`` with their weights itself, there."""

    def __init__(self, layers: Sequence[AttentionLayer], model: nn.Module, norms: bool) -> None:
        super().__init__()
        if not layers:
            raise UserError(
                f"{type(model).__name__} has no attention layers with query, key and value projections under a known "
                "name: give a callable that returns a Tap"
            )
        self.layers, self.norms = layers, norms
        self.count = len(layers)

    def __enter__(self) -> "_Recorder":
        by_weight: dict[int, Callable[[Tensor], None]] = {}
        for number, layer in enumerate(self.layers, 1):
            if number not in self._wanted:
                continue
            seen: dict[str, Tensor] = {}
            for part in layer.projections:
                projection = getattr(layer.module, part)
                see = partial(self._see, number, layer, part, seen)
                if self.norms:
                    handle = projection.register_forward_hook(lambda module, inputs, output, see=see: see(output))
                    self._stack.callback(handle.remove)
                else:
                    by_weight[id(projection.weight)] = see
        if by_weight:
            self._stack.enter_context(_LinearMode(by_weight))
        return self

    def _see(self, number: int, layer: AttentionLayer, part: str, seen: dict[str, Tensor], output: Tensor) -> None:
        seen[part] = output
        if len(seen) == len(layer.projections):
            self.keep(number, lambda: self._tap(layer, seen))

    def _tap(self, layer: AttentionLayer, seen: dict[str, Tensor]) -> Tap:
        parts = [seen[part] for part in layer.projections]
        if len(parts) == 1:
            shared = layer.key_heads
            q, k, v = _split_heads(parts[0], layer.heads + 2 * shared).split([layer.heads, shared, shared], 1)
        else:
            width = parts[0].shape[-1] // layer.heads
            q, k, v = (_split_heads(x, x.shape[-1] // width) for x in parts)
        if self.norms:
            q, k = layer.module.q_norm(q), layer.module.k_norm(k)
        return Tap(q, k, v, scale=q.shape[-1] ** -0.5)


class TransformersRecorder(_Recorder):
    """An attention function of transformers that looks on."""

    def __init__(self, layers: Sequence[AttentionLayer], model: Any) -> None:
        super().__init__()
        self.model = model
        self.numbers = {id(layer.module): number for number, layer in enumerate(layers, 1)}
        self.count = len(layers) or int(model.config.num_hidden_layers)
        self._calls = 0

    def __enter__(self) -> "_Recorder":
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, eager_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def look(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
            if q.shape[-2] != k.shape[-2]:  # a pool, or attention across two sequences
                return sdpa(module, q, k, v, mask, **options)
            self._calls += 1
            number = self.numbers.get(id(module), self._calls)
            scale = options.get("scaling")
            scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
            self.keep(number, lambda: Tap(q, k, v, scale=scale, bias=_as_bias(mask, q)))
            return sdpa(module, q, k, v, mask, **options)

        AttentionInterface.register(_TRANSFORMERS_TAP, look)
        AttentionMaskInterface.register(_TRANSFORMERS_TAP, eager_mask)
        configurations = {id(m.config): m.config for m in self.model.modules() if hasattr(m, "config")}
        for configuration in configurations.values():
            before = configuration._attn_implementation
            self._stack.callback(setattr, configuration, "_attn_implementation_internal", before)
            configuration._attn_implementation_internal = _TRANSFORMERS_TAP
        return self


class SdpaRecorder(_Recorder):
    """Sees every call of ``scaled_dot_product_attention``; layers are numbered by calls."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self._mode = _SdpaMode(self._see)
        self._calls = 0
        self.count = _CALLS.get(model, 0)
        if not self.count:  # a run that only counts, once for a network
            with torch.no_grad(), self._mode, in_eval(model):
                call(model, inputs)
            self.count, self._calls = self._calls, 0
            _CALLS[model] = self.count
        if not self.count:
            raise UserError(
                f"{type(model).__name__} calls no scaled_dot_product_attention (fused attention may be switched off, "
                "or it has attention of its own): use qk='raw', or give a callable that returns a Tap"
            )

    def __enter__(self) -> "_Recorder":
        self._stack.enter_context(self._mode)
        return self

    def _see(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> None:
        if q.shape[-2] != k.shape[-2]:  # a pool, or attention across two sequences
            return
        self._calls += 1
        if self.count:
            factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
            self.keep(self._calls, lambda: Tap(q, k, v, scale=factor, bias=_as_bias(mask, q), causal=causal))


class _SdpaMode(TorchFunctionMode):
    def __init__(self, see: Callable[..., None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, args, strict=False)) | kwargs
            self.see(
                given["query"],
                given["key"],
                given["value"],
                given.get("attn_mask"),
                bool(given.get("is_causal", False)),
                given.get("scale"),
            )
        return func(*args, **kwargs)


class _LinearMode(TorchFunctionMode):
    """Sees what ``linear`` gives with certain weights."""

    def __init__(self, by_weight: dict[int, Callable[[Tensor], None]]) -> None:
        super().__init__()
        self.by_weight = by_weight

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear:
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            if id(weight) in self.by_weight:
                self.by_weight[id(weight)](output)
        return output


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """``(batch, N, heads * width)`` to ``(batch, heads, N, width)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _as_bias(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """A boolean mask (true: seen) as an addend; a float one as it is."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    return mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < 4 else mask


def is_transformers(model: nn.Module) -> bool:
    """Whether the model's class, or one that it derives from, is of transformers."""
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def is_plain_timm(module: nn.Module) -> bool:
    """Timm's own ``Attention``: nothing between its projection and norms and its logits."""
    return type(module).__name__ == "Attention" and type(module).__module__ in (
        "timm.layers.attention",
        "timm.models.vision_transformer",
    )
