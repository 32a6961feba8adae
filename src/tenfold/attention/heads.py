"""Equal head counts for two attention layers.

The *adaptive* way (TinyMIM, section 3.2) runs the student's layer with as many heads as the teacher's has, which
changes neither parameters nor cost; *relation heads* (MiniLMv2, section 3) split both networks' concatenated heads
anew; the *mean* averages the heads' logits, which is one head of the whole width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.attention.layers import AttentionLayer, Tap, attention_layers
from tenfold.errors import UserError

Heads = Literal["auto", "adaptive", "mean"] | int
"""``adaptive``, a number of relation heads, ``mean``, or ``auto``: adaptive where possible, else relation heads."""


_DEPEND_ON_HEADS = ("rope", "rotary_emb", "rel_pos", "relative_position_bias_table", "relative_position_bias")


def heads_obstacle(layer: AttentionLayer, heads: int) -> str | None:
    """Why a layer cannot run with another number of heads; ``None`` where it can.

    Args:
        layer: a layer of `attention_layers`.
        heads: number of heads that it shall have.
    """
    module = layer.module
    if heads < 1:
        return f"a layer cannot have {heads} heads"
    width = layer.width
    if width % heads:
        return f"its width {width} is not a multiple of {heads} heads"
    if heads == layer.heads:
        return None
    for name in ("q_norm", "k_norm"):
        if next(getattr(module, name, nn.Identity()).parameters(), None) is not None:
            return f"its {name} has weights for the head width"
    for name in _DEPEND_ON_HEADS:
        if getattr(module, name, None) is not None and not isinstance(getattr(module, name), bool):
            return f"its {name} belongs to the number of heads"
    if layer.positions:
        return f"its network has {layer.positions} positions, which belong to the number of heads"
    grouped = layer.key_heads != layer.heads
    if grouped or (len(layer.projections) == 3 and getattr(module, layer.projections[1]).out_features != width):
        return "its queries share keys (grouped-query attention)"
    return None


def set_heads(layer: AttentionLayer, heads: int) -> None:
    """Run an attention layer with another number of heads, in place: head width and scale follow.

    No parameter changes its shape, since the projections hold all heads.

    Args:
        layer: the layer.
        heads: number of heads that it shall have; divides the width.

    Raises:
        UserError: the layer's parameters depend on the head width, or the number does not divide the width.
    """
    obstacle = heads_obstacle(layer, heads)
    if obstacle is not None:
        raise UserError(f"the attention layer {layer.name!r} cannot run with {heads} heads: {obstacle}")
    module = layer.module
    width = layer.width
    head_width = width // heads
    values = {
        ("num_heads", "num_attention_heads", "n_heads"): heads,
        ("head_dim", "attention_head_size", "attention_head_dim"): head_width,
        ("scale", "scaling"): head_width**-0.5,
    }
    for names, value in values.items():
        for name in names:
            if hasattr(module, name):
                setattr(module, name, value)


def heads_per_block(model: nn.Module) -> list[int]:
    """Number of heads of each attention layer: part of a model, since layers may differ.

    Args:
        model: a network whose layers `attention_layers` knows.
    """
    return [layer.heads for layer in attention_layers(model)]


def set_heads_per_block(model: nn.Module, heads: list[int]) -> None:
    """Give each attention layer its number of heads.

    Args:
        model: the network.
        heads: one number per layer.

    Raises:
        UserError: the numbers are not one per layer, or one does not fit its layer.
    """
    layers = attention_layers(model)
    if len(layers) != len(heads):
        raise UserError(f"{type(model).__name__} has {len(layers)} attention layers; got heads for {len(heads)}")
    for layer, count in zip(layers, heads, strict=True):
        set_heads(layer, count)


def largest_common_heads(width_s: int, width_t: int, limit: int) -> int:
    """The largest number of relation heads, at most ``limit``, that divides both widths."""
    return next(count for count in range(limit, 0, -1) if width_s % count == 0 and width_t % count == 0)


def align_heads(
    student: nn.Module,
    teacher: nn.Module,
    layer_s: Any,
    layer_t: Any,
    heads: Heads,
    runs: Callable[[], bool] = lambda: True,
) -> Any:
    """Change the student's layer where its heads are to adapt.

    Args:
        student: the network that learns.
        teacher: the network that is copied.
        layer_s: number of the student's layer, from 1, or a callable that makes its tap.
        layer_t: likewise, of the teacher.
        runs: whether the student still runs, asked after its heads were changed.
        heads: see `Heads`.

    Returns:
        The way that was taken: ``adaptive``, ``mean`` or a number of relation heads.

    Raises:
        UserError: the heads cannot be aligned in this way.
    """
    if heads == "mean" or (isinstance(heads, int) and not isinstance(heads, bool)):
        return heads
    if heads not in ("auto", "adaptive"):
        raise UserError(f"heads must be 'auto', 'adaptive', 'mean' or a number of relation heads; got {heads!r}")
    ours, theirs = attention_layers(student), attention_layers(teacher)
    if callable(layer_s) or callable(layer_t) or not ours or not theirs:
        return "adaptive"  # nothing can be changed; equal counts are checked when both are seen
    layer, wanted = ours[layer_s - 1], theirs[layer_t - 1].heads
    obstacle = heads_obstacle(layer, wanted)
    if obstacle is None:
        set_heads(layer, wanted)
        if wanted == layer.heads or runs():
            return "adaptive"
        obstacle = "the network no longer runs with them"
        set_heads(replace(layer, heads=wanted), layer.heads)
    common = largest_common_heads(layer.width, theirs[layer_t - 1].width, wanted)
    if heads == "adaptive" or common == 1:
        way = "heads='auto'" if common > 1 else "heads='mean'"
        if "relative" in obstacle or "rel_pos" in obstacle:  # relation heads would mix the biases of the layer's heads
            way = "heads='mean', or heads='auto' with qk='raw'"
        raise UserError(
            f"the student's layer {layer.name!r} cannot run with the teacher's {wanted} heads: {obstacle}; use {way}"
        )
    return common


def relation_heads(x: Tensor, heads: int) -> Tensor:
    """Concatenate the heads and split them anew (MiniLMv2, section 3.2).

    Args:
        x: ``(batch, heads, N, head width)``.
        heads: number of relation heads R.

    Returns:
        ``(batch, R, N, width / R)``.

    Raises:
        UserError: R does not divide the width.
    """
    joined = x.transpose(1, 2).flatten(2)
    if heads < 1 or joined.shape[-1] % heads:
        raise UserError(f"{heads} relation heads do not divide the width {joined.shape[-1]}")
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)


def regrouped(one: Tap, heads: int | Literal["mean"], *, attention: bool = True) -> Tap:
    """A tap with relation heads of equal width, or with the mean of its heads' logits as its only relation.

    Args:
        one: the tap; grouped keys and values are repeated.
        heads: number of relation heads, or ``mean``.
        attention: whether the relation of queries and keys is asked for, which has the layer's bias.

    Raises:
        UserError: the number does not divide the width, or attention with a bias of its own for each head is to be
            split into relation heads.
    """
    bias = one.bias
    if bias is not None and bias.shape[1] != 1:
        if heads == "mean":
            one = replace(one, bias=bias.mean(1, keepdim=True))
        elif not attention:  # what no head sees stays out of sight
            lowest = torch.finfo(bias.dtype).min
            excluded = (bias.detach() <= lowest / 2).all(1, keepdim=True)
            one = replace(one, bias=torch.zeros_like(bias[:, :1]).masked_fill(excluded, lowest))
        else:
            raise UserError(
                "the layer adds a bias of its own to each head (relative positions), which relation heads would mix: "
                "use qk='raw' (queries and keys without it) or heads='mean'"
            )
    q, k, v = one.q, repeat_heads(one.k, one.heads), repeat_heads(one.v, one.heads)
    if heads == "mean":
        # The mean over heads of q_h k_h is the product of the concatenated heads over their number.
        return replace(
            one, q=relation_heads(q, 1), k=relation_heads(k, 1), v=relation_heads(v, 1), scale=one.scale / one.heads
        )
    q, k, v = (relation_heads(x, heads) for x in (q, k, v))
    return replace(one, q=q, k=k, v=v, scale=q.shape[-1] ** -0.5)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Grouped keys or values, once for each query head that uses them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)
