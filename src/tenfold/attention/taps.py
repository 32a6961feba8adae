"""Queries, keys and values of any layer of any attention network, without its attention maps.

`tap` runs a network up to one attention layer and stops there: what comes after is not computed. It looks for
the layer's tensors in this order:

1. transformers models: a function registered with their ``AttentionInterface`` sees queries and keys after norm and
   rotation, the mask, and the scale that the layer really uses;
2. layers with a fused ``qkv`` projection as timm's ``Attention``: the projection and the layer's own norms;
3. anything else that calls ``scaled_dot_product_attention``: the call is intercepted;
4. for ``qk="raw"``: the bare projections, fused or separate.

Where none of these sees the layer, give a callable of your own that returns a `Tap`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from tenfold.attention.layers import (
    Tap,
    Tapper,
    attention_layers,
    bare,
    call,
    images_of,
    patch_size,
    resolve_layer,
)
from tenfold.attention.recorders import (
    ProjectionRecorder,
    Reached,
    SdpaRecorder,
    TransformersRecorder,
    is_plain_timm,
    is_transformers,
)
from tenfold.errors import UserError


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
        model: see `tap`.
        layers: numbers as in `tap`.
        inputs: see `tap`.
        qk: see `tap`.
        stop: stop at the last of the layers.

    Returns:
        The taps in the order of ``layers``, and the network's output; ``None`` where it was stopped.
    """
    if qk not in ("effective", "raw"):
        raise UserError(f"qk must be 'effective' or 'raw'; got {qk!r}")
    model = bare(model)
    known = attention_layers(model)
    if qk == "raw":
        recorder: Any = ProjectionRecorder(known, model, norms=False)
    elif is_transformers(model):
        recorder = TransformersRecorder(known, model)
    elif known and all(is_plain_timm(layer.module) for layer in known):
        recorder = ProjectionRecorder(known, model, norms=True)
    else:
        recorder = SdpaRecorder(model, inputs)
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
