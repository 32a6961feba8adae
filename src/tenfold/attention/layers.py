"""The attention layers of a network, and what is read from one."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError

_SPLIT_NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
_HEAD_NAMES = ("num_heads", "num_attention_heads", "n_heads")
# In the names of classes that make positions whose size follows from the number of heads.
_POSITIONS = {"rotary": r"Rotary|RoPE|Rope(?![a-z])", "relative": r"RelPos|RelativePosition"}


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
    """One self-attention module that `attention_layers` recognised.

    Attributes:
        name: as in ``model.named_modules()``.
        module: the module.
        heads: its number of query heads.
        projections: names of its ``(query, key, value)`` projections, or of the fused one alone.
        positions: what its network gives it whose size follows from the number of heads: ``rotary`` positions, or
            ``relative`` ones; empty for none.
    """

    name: str
    module: Any
    heads: int
    projections: tuple[str, ...]
    positions: str = ""

    @property
    def width(self) -> int:
        """Width of the concatenated query heads."""
        out = getattr(self.module, self.projections[0]).out_features
        if len(self.projections) == 3:
            return out
        grouped = self.key_heads
        return out * self.heads // (self.heads + 2 * grouped)

    @property
    def key_heads(self) -> int:
        """Number of key heads, which queries share in grouped-query attention."""
        width = getattr(self.module, "head_dim", None)
        if len(self.projections) == 3 or not isinstance(width, int):
            return self.heads
        return (getattr(self.module, self.projections[0]).out_features // width - self.heads) // 2


def bare(model: nn.Module) -> Any:
    """The network itself, without what `torch.compile` and `torch.nn.DataParallel` put around it.

    Raises:
        UserError: it is wrapped for training on several processes, whose gradients would not meet any more.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise UserError(
                "student and teacher are networks, not wrapped in DistributedDataParallel: wrap the distiller, or use "
                "distill_relations with trainer=TrainerOptions(devices=...)"
            )
        if isinstance(model, nn.DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Within the block compiled parts run as they are written: compiled code calls no hook that came after it."""
    compiled = any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules for module in model.modules()
    )
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Within the block networks are in eval mode; then every module has its own mode again."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """The self-attention layers of a network by their projections, in the order of its modules.

    Args:
        model: timm ViTs (fused ``qkv``), transformers ViT, ViT-MAE, DeiT, BERT families, and what is built like them;
            networks of another kind give an empty list. Pools that attend with a query of their own, and attention
            across two sequences, are no such layers.
    """
    model = bare(model)
    kinds = " ".join({type(module).__name__ for module in model.modules()})
    positions = next((which for which, pattern in _POSITIONS.items() if re.search(pattern, kinds)), "")
    found = []
    for name, module in model.named_modules():
        heads = next((getattr(module, n) for n in _HEAD_NAMES if isinstance(getattr(module, n, None), int)), None)
        kind = type(module).__name__.lower()
        if heads is None or "pool" in kind or "cross" in f"{kind} {name}" or name.endswith("encoder_attn"):
            continue
        for projections in (("qkv",), *_SPLIT_NAMES):
            if all(isinstance(getattr(module, part, None), nn.Linear) for part in projections):
                found.append(AttentionLayer(name, module, heads, projections, positions))
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


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a network on a tensor, a tuple or a dict; transformers' ViT-MAE sees all patches in their order.

    Raises:
        UserError: the network refuses inputs of this size or kind.
    """
    model = bare(model)
    try:
        with eager(model):
            return _call(model, inputs)
    except (AssertionError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{type(model).__name__} cannot run on these inputs ({said}): give each network inputs that it takes, as a "
            "pair (student's, teacher's) where they differ"
        ) from error


def _call(model: nn.Module, inputs: Any) -> Any:
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


def patch_size(model: Any) -> tuple[int, int] | None:
    """Height and width of a vision transformer's patches in pixels; ``None`` for other networks."""
    model = bare(model)
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if size is None:
        size = getattr(getattr(model, "config", None), "patch_size", None)
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


_FIXED_SIZE = ("vit", "vit_mae", "vit_msn", "deit", "beit", "data2vec-vision")  # of transformers' model types


def fixed_image_size(model: Any) -> tuple[int, int] | None:
    """Height and width of the only images that a vision transformer takes; ``None`` where it takes others, too."""
    model = bare(model)
    embed, config = getattr(model, "patch_embed", None), getattr(model, "config", None)
    size = None
    if getattr(embed, "strict_img_size", False):
        size = getattr(embed, "img_size", None)
    elif getattr(config, "model_type", "") in _FIXED_SIZE:
        size = getattr(config, "image_size", None)
    return None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def images_of(inputs: Any) -> Tensor | None:
    """The images ``(batch, channels, height, width)`` among a network's inputs, if any."""
    if isinstance(inputs, Mapping):
        inputs = inputs.get("pixel_values", inputs.get("x"))
    elif isinstance(inputs, tuple | list) and inputs:
        inputs = inputs[0]
    return inputs if isinstance(inputs, Tensor) and inputs.ndim == 4 else None


def default_teacher_layer(teacher_layers: int, student_layers: int) -> int:
    """The teacher's target block, from 1: the last of equal depths, else three quarters up.

    Extrapolated from TinyMIM, table 10 (block 18 of 24 for 12, block 12 of 12 for 12); sweep it where it matters.
    """
    return teacher_layers if teacher_layers == student_layers else round(0.75 * teacher_layers)


def depth(model: Any) -> int | None:
    """Number of attention layers of a network, or ``None`` where it cannot be told without running it."""
    model = bare(model)
    known = len(attention_layers(model))
    if known:
        return known
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    blocks = getattr(model, "blocks", None)
    return layers if layers is not None else len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
