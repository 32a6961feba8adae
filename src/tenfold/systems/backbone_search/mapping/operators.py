"""A block's weights for another operator: inverted bottleneck, fused, Tucker; each way by what the weights compute.

Activations inside are ignored, so the result is an approximation; batch statistics are estimated again afterwards.
Merging two convolutions is exact for what lies between them; splitting one is its truncated singular value
decomposition.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tenfold.systems.backbone_search.detector.blocks import NORM_EPSILON

Weights = dict[str, Tensor]


def convert(weights: Mapping[str, Tensor], source: str, target: str, ranks: tuple[int, int]) -> Weights:
    """The weights of a block for another operator.

    Args:
        weights: of the block, by the names within it (``expand.conv.weight`` ...).
        source: ``ibn``, ``fused`` or ``tucker``.
        target: likewise, another.
        ranks: inner widths of a Tucker target.

    Returns:
        Tensors by the target's names; what has no counterpart is absent and keeps its fresh values.
    """
    fused = dict(weights) if source == "fused" else (_ibn_to_fused if source == "ibn" else _tucker_to_fused)(weights)
    if target == "fused":
        return fused
    return _fused_to_ibn(fused) if target == "ibn" else _fused_to_tucker(fused, ranks)


def _scale_and_shift(weights: Mapping[str, Tensor], part: str) -> tuple[Tensor, Tensor]:
    """A batch normalization in eval mode as factor and summand."""
    scale = weights[f"{part}.bn.weight"] / (weights[f"{part}.bn.running_var"] + NORM_EPSILON).sqrt()
    return scale, weights[f"{part}.bn.bias"] - weights[f"{part}.bn.running_mean"] * scale


def _only(weights: Mapping[str, Tensor], *parts: str) -> Weights:
    return {name: value for name, value in weights.items() if name.startswith(tuple(f"{part}." for part in parts))}


def _renamed(weights: Mapping[str, Tensor], old: str, new: str) -> Weights:
    start = f"{old}.bn."
    return {f"{new}.bn." + name.removeprefix(start): v.clone() for name, v in weights.items() if name.startswith(start)}


def _ibn_to_fused(weights: Mapping[str, Tensor]) -> Weights:
    depthwise = weights["dw.conv.weight"][:, 0]
    if "expand.conv.weight" in weights:
        scale, shift = _scale_and_shift(weights, "expand")
        full = (scale[:, None] * weights["expand.conv.weight"][:, :, 0, 0])[:, :, None, None] * depthwise[:, None]
    else:  # expansion 1: each hidden channel reads its own input channel
        shift = torch.zeros(len(depthwise))
        full = torch.diag_embed(torch.ones(len(depthwise)))[:, :, None, None] * depthwise[:, None]
    made = {"fused.conv.weight": full, **_renamed(weights, "dw", "fused"), **_only(weights, "se", "proj")}
    made["fused.bn.running_mean"] = made["fused.bn.running_mean"] - shift * depthwise.sum((1, 2))
    return made


def _tucker_to_fused(weights: Mapping[str, Tensor]) -> Weights:
    scale, shift = _scale_and_shift(weights, "reduce")
    core = weights["core.conv.weight"]
    full = torch.einsum("orxy,ri->oixy", core, scale[:, None] * weights["reduce.conv.weight"][:, :, 0, 0])
    made = {"fused.conv.weight": full, **_renamed(weights, "core", "fused"), **_only(weights, "proj")}
    made["fused.bn.running_mean"] = made["fused.bn.running_mean"] - torch.einsum("orxy,r->o", core, shift)
    return made


def _fused_to_ibn(weights: Mapping[str, Tensor]) -> Weights:
    full = weights["fused.conv.weight"]
    hidden, incoming, side, _ = full.shape
    left, values, right = torch.linalg.svd(full.reshape(hidden, incoming, side * side), full_matrices=False)
    root = values[:, 0].clamp(min=0).sqrt()
    return {
        "expand.conv.weight": (root[:, None] * left[:, :, 0])[:, :, None, None],
        "dw.conv.weight": (root[:, None] * right[:, 0]).reshape(hidden, 1, side, side),
        **_renamed(weights, "fused", "dw"),
        **_only(weights, "se", "proj"),
    }


def _fused_to_tucker(weights: Mapping[str, Tensor], ranks: tuple[int, int]) -> Weights:
    scale, shift = _scale_and_shift(weights, "fused")
    project = weights["proj.conv.weight"][:, :, 0, 0]
    # What the whole block does to a constant image apart from its convolution belongs to the last normalization.
    full = torch.einsum("oh,hixy->oixy", project * scale, weights["fused.conv.weight"])
    outgoing, incoming, _, _ = full.shape
    inner, outer = min(ranks[0], incoming), min(ranks[1], outgoing)
    reduce = torch.linalg.svd(full.transpose(0, 1).reshape(incoming, -1), full_matrices=False)[0][:, :inner]
    expand = torch.linalg.svd(full.reshape(outgoing, -1), full_matrices=False)[0][:, :outer]
    core = torch.einsum("oixy,or,is->rsxy", full, expand, reduce)
    made = {
        "reduce.conv.weight": reduce.T[:, :, None, None].contiguous(),
        "core.conv.weight": core,
        **_only(weights, "proj"),
    }
    made["proj.conv.weight"] = expand[:, :, None, None].contiguous()
    made["proj.bn.running_mean"] = weights["proj.bn.running_mean"] - project @ shift
    return made
