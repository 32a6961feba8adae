"""Queries, keys and values of any layer of any attention network, without its attention maps.

:func:`tap` runs a network up to one attention layer and stops there: what comes after is not computed. It looks for
the layer's tensors in this order:

1. transformers models: a function registered with their ``AttentionInterface`` sees queries and keys after norm and
   rotation, the mask, and the scale that the layer really uses;
2. layers with a fused ``qkv`` projection as timm's ``Attention``: the projection and the layer's own norms;
3. anything else that calls ``scaled_dot_product_attention``: the call is intercepted;
4. for ``qk="raw"``: the bare projections, fused or separate.

Where none of these sees the layer, give a callable of your own that returns a :class:`Tap`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenfold.errors import UserError

_SPLIT_NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
_HEAD_NAMES = ("num_heads", "num_attention_heads", "n_heads")
_TRANSFORMERS_TAP = "tenfold_tap"
_CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Tap:
    """What one attention layer computes its relations from.

    Attributes:
        q: ``(batch, heads, N, head width)`` queries.
        k: ``(batch, key heads, N, head width)`` keys; fewer heads in grouped-query attention.
        v: ``(batch, key heads, N, value width)`` values.
        scale: factor of ``q k^T``.
        bias: what the layer adds to its scaled logits (relative positions, masks), broadcast to
            ``(batch, heads, N, N)``, or ``None``.
        causal: whether a token attends only to itself and those before.
        prefix: leading tokens that are no patches (class token, registers).
        grid: ``(rows, columns)`` of the patches after them; ``None`` for text and for masked input.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None = None
    causal: bool = False
    prefix: int = 0
    grid: tuple[int, int] | None = None

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.q.shape[1]

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return self.q.shape[2]


Tapper = Callable[[nn.Module, Any], Tap]
"""A user's own tap: takes the network and its inputs."""


@dataclass(frozen=True)
class AttentionLayer:
    """One self-attention module that :func:`attention_layers` recognised.

    Attributes:
        name: as in ``model.named_modules()``.
        module: the module.
        heads: its number of query heads.
        projections: names of its ``(query, key, value)`` projections, or of the fused one alone.
    """

    name: str
    module: Any
    heads: int
    projections: tuple[str, ...]


class Reached(BaseException):
    """Raised at the last tap; no ``except Exception`` of a network on the way may take it for an error."""


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """The self-attention layers of a network by their projections, in the order of its modules.

    Args:
        model: timm ViTs (fused ``qkv``), transformers ViT, ViT-MAE, DeiT, BERT families, and what is built like them;
            networks of another kind give an empty list.
    """
    found = []
    for name, module in model.named_modules():
        heads = next((getattr(module, n) for n in _HEAD_NAMES if isinstance(getattr(module, n, None), int)), None)
        if heads is None:
            continue
        for projections in (("qkv",), *_SPLIT_NAMES):
            if all(isinstance(getattr(module, part, None), nn.Linear) for part in projections):
                found.append(AttentionLayer(name, module, heads, projections))
                break
    return found


def resolve_layer(layer: int, layers: int, whose: str = "the network") -> int:
    """A layer counted from 1, or from the end with -1 as the last, as a number from 1 to ``layers``.

    Raises:
        UserError: it is out of range.
    """
    chosen = layers + 1 + layer if layer < 0 else layer
    if not 1 <= chosen <= layers:
        raise UserError(f"{whose} has attention layers 1 to {layers}; there is no layer {layer}")
    return chosen


def tap(
    model: nn.Module,
    layer: int | Tapper,
    inputs: Any,
    *,
    qk: Literal["effective", "raw"] = "effective",
) -> Tap:
    """Queries, keys and values of one attention layer; the network runs no further than there.

    Gradients are recorded as the surrounding code has it: wrap a teacher in ``torch.no_grad`` (not in
    ``inference_mode``, whose tensors cannot be kept for a backward pass).

    Args:
        model: the network, in the mode in which it shall run.
        layer: from 1, or -1 for the last; or a callable that makes the tap itself.
        inputs: a tensor, a tuple, or a dict of keyword arguments.
        qk: ``effective`` queries and keys are those of the real attention map, after norms and rotation, with its
            bias and mask; ``raw`` ones are the bare projections.

    Raises:
        UserError: there is no such layer, or nothing of it can be seen.
    """
    if callable(layer):
        return layer(model, inputs)
    return tap_layers(model, [layer], inputs, qk=qk)[0][0]


def tap_layers(
    model: nn.Module,
    layers: Sequence[int],
    inputs: Any,
    *,
    qk: Literal["effective", "raw"] = "effective",
    stop: bool = True,
) -> tuple[list[Tap], Any]:
    """Taps of several layers from one forward pass.

    Args:
        model: see :func:`tap`.
        layers: numbers as in :func:`tap`.
        inputs: see :func:`tap`.
        qk: see :func:`tap`.
        stop: stop at the last of the layers.

    Returns:
        The taps in the order of ``layers``, and the network's output; ``None`` where it was stopped.
    """
    if qk not in ("effective", "raw"):
        raise UserError(f"qk must be 'effective' or 'raw'; got {qk!r}")
    known = attention_layers(model)
    if qk == "raw":
        recorder: Any = _ProjectionRecorder(known, model, norms=False)
    elif _is_transformers(model):
        recorder = _TransformersRecorder(known, model)
    elif known and all(_is_plain_timm(layer.module) for layer in known):
        recorder = _ProjectionRecorder(known, model, norms=True)
    else:
        recorder = _SdpaRecorder(model, inputs)
    numbers = [resolve_layer(layer, recorder.count, type(model).__name__) for layer in layers]
    recorder.want(set(numbers), max(numbers) if stop else None)
    output = None
    with recorder, suppress(Reached):
        output = call(model, inputs)
    missing = [number for number in numbers if number not in recorder.taps]
    if missing:
        raise UserError(
            f"nothing of layer {missing[0]} of {type(model).__name__} can be seen: give a callable that returns a Tap"
        )
    placed = {number: _placed(recorder.taps[number], model, inputs) for number in set(numbers)}
    return [placed[number] for number in numbers], output


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a network on a tensor, a tuple or a dict; transformers' ViT-MAE sees all patches in their order."""
    if getattr(getattr(model, "config", None), "model_type", "") == "vit_mae":
        return _call_unshuffled(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _call_unshuffled(model: Any, inputs: Any) -> Any:
    """Its embedding drops and shuffles patches unless the ratio is 0 and the noise rises."""
    values = dict(inputs) if isinstance(inputs, Mapping) else {"pixel_values": inputs}
    images = values["pixel_values"]
    patches = (images.shape[-2] // model.config.patch_size) * (images.shape[-1] // model.config.patch_size)
    values.setdefault("noise", torch.arange(patches, device=images.device, dtype=torch.float32).expand(len(images), -1))
    ratio = model.config.mask_ratio
    model.config.mask_ratio = 0.0
    try:
        return model(**values)
    finally:
        model.config.mask_ratio = ratio


# --- recorders ------------------------------------------------------------------------------------------------------


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


class _ProjectionRecorder(_Recorder):
    """Forward hooks on the projections."""

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
        for number, layer in enumerate(self.layers, 1):
            if number not in self._wanted:
                continue
            seen: dict[str, Tensor] = {}
            for part in layer.projections:
                hook = self._hook(number, layer, part, seen)
                self._stack.callback(getattr(layer.module, part).register_forward_hook(hook).remove)
        return self

    def _hook(self, number: int, layer: AttentionLayer, part: str, seen: dict[str, Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            seen[part] = output
            if len(seen) == len(layer.projections):
                self.keep(number, lambda: self._tap(layer, seen))

        return hook

    def _tap(self, layer: AttentionLayer, seen: dict[str, Tensor]) -> Tap:
        parts = [seen[part] for part in layer.projections]
        if len(parts) == 1:
            q, k, v = _split_heads(parts[0], 3 * layer.heads).chunk(3, 1)
        else:
            width = parts[0].shape[-1] // layer.heads
            q, k, v = (_split_heads(x, x.shape[-1] // width) for x in parts)
        if self.norms:
            q, k = layer.module.q_norm(q), layer.module.k_norm(k)
        return Tap(q, k, v, scale=q.shape[-1] ** -0.5)


class _TransformersRecorder(_Recorder):
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


class _SdpaRecorder(_Recorder):
    """Sees every call of ``scaled_dot_product_attention``; layers are numbered by calls."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self._mode = _SdpaMode(self._see)
        self._calls = 0
        self.count = _CALLS.get(model, 0)
        if not self.count:  # a run that only counts, once for a network
            with torch.no_grad(), self._mode, _in_eval(model):
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
                given["query"], given["key"], given["value"], given.get("attn_mask"),
                bool(given.get("is_causal", False)), given.get("scale"),
            )  # fmt: skip
        return func(*args, **kwargs)


# --- small things ---------------------------------------------------------------------------------------------------


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


def _is_transformers(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def _is_plain_timm(module: nn.Module) -> bool:
    """timm's own ``Attention``: nothing between its projection and norms and its logits."""
    return type(module).__name__ == "Attention" and type(module).__module__ in (
        "timm.layers.attention",
        "timm.models.vision_transformer",
    )


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def patch_size(model: Any) -> tuple[int, int] | None:
    """Height and width of a vision transformer's patches in pixels; ``None`` for other networks."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is None:
        size = getattr(getattr(model, "config", None), "patch_size", None)
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def images_of(inputs: Any) -> Tensor | None:
    """The images ``(batch, channels, height, width)`` among a network's inputs, if any."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("pixel_values", inputs.get("x"))
    elif isinstance(inputs, tuple | list) and inputs:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Tensor) and inputs.ndim == 4 else None


def _placed(found: Tap, model: Any, inputs: Any) -> Tap:
    """The tap with the places of its tokens: how many come before the patches, and the patches' grid."""
    images, patch = images_of(inputs), patch_size(model)
    if images is None or patch is None:
        return found
    rows, columns = images.shape[-2] // patch[0], images.shape[-1] // patch[1]
    prefix = found.tokens - rows * columns
    if prefix < 0:  # masked input: some patches are missing
        return replace(found, prefix=int(getattr(model, "num_prefix_tokens", 1)))
    return replace(found, prefix=prefix, grid=(rows, columns))
