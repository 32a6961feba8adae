"""Backbones that were trained to classify ImageNet, as seeds: torchvision's MobileNetV2, FNA's networks, OFA's.

They differ in names only: a stem, inverted bottlenecks, a 1 x 1 convolution and a classifier (both left out). Their
inputs are RGB, normalized by mean and standard deviation; ours are BGR from 0 to 255: that goes into the stem, exactly
but for the outermost pixels, where zeros are padded to something else. Their normalizations have another epsilon, which
goes into the scales.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint
from tenfold.systems.backbone_search.detector.blocks import NORM_EPSILON
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite

EPSILON = 1e-5
"""Of the normalizations of all three."""

_MATRIX = re.compile(r"blocks\.(\d+)\.(?:conv|mobile_inverted_conv)\.depth_conv\.conv\.([57])to\d_matrix$")
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)


@dataclass(frozen=True)
class _Names:
    """How a source names its tensors.

    Attributes:
        stem: convolution and normalization of the stem.
        block: pattern of a block's tensors: a group ``block`` that orders blocks, a group ``part``.
        parts: for blocks with and without the first convolution, our name of each part.
    """

    stem: tuple[str, str]
    block: re.Pattern[str]
    parts: tuple[Mapping[str, str], Mapping[str, str]]


def _parts(*names: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    ours = [f"{part}.{kind}" for part in ("expand", "dw", "proj") for kind in ("conv", "bn")]
    whole, light = names[:6], names[6:]
    return dict(zip(whole, ours, strict=True)), dict(zip(light, ours[2:], strict=True))


_OFA = [
    f"{part}.{kind}"
    for part in ("inverted_bottleneck", "depth_conv", "point_linear")
    for kind in ("conv.conv", "bn.bn")
]
LAYOUTS = {
    "torchvision": _Names(
        ("features.0.0", "features.0.1"),
        re.compile(r"features\.(?P<block>[1-9]|1[0-7])\.conv\.(?P<part>\d(?:\.\d)?)\.(?P<leaf>\w+)$"),
        _parts("0.0", "0.1", "1.0", "1.1", "2", "3", "0.0", "0.1", "1", "2"),
    ),
    "fna": _Names(
        ("blocks.0.0", "blocks.0.1"),
        re.compile(r"blocks\.(?P<block>[1-7]\.layers\.\d+)\.op\.(?P<part>\d)\.(?P<leaf>\w+)$"),
        _parts("0", "1", "3", "4", "6", "7", "0", "1", "3", "4"),
    ),
    "ofa": _Names(
        ("first_conv.conv", "first_conv.bn"),
        re.compile(
            r"blocks\.(?P<block>\d+)\.(?:conv|mobile_inverted_conv)\."
            r"(?P<part>\w+\.(?:conv\.conv|bn\.bn|conv|bn))\.(?P<leaf>[a-z]\w+)$"
        ),
        _parts(*_OFA, *_OFA[2:]),
    ),
}  # fmt: skip
"""How each source names its tensors; which one a file is of is told by them."""


def load_classifier(path: str | Path, plan: DetectorPlan, kernel: int | None = None) -> YOLOXLite:
    """A detector whose backbone comes from a classifier's checkpoint; neck and head are fresh.

    Give it to ``map_weights(..., parts="backbone")`` as the source, which leaves the target's own neck and head.

    Args:
        path: a state dict, bare or under ``state_dict`` or ``model``; nothing in it is executed.
        plan: gives classes, neck and head.
        kernel: see ``from_classifier``.

    Raises:
        UserError: the file is damaged, or of none of these networks.
    """
    content: Any = read_checkpoint(path)
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: expected tensors by name")
    state = {name.removeprefix("module."): value for name, value in content.items()}
    backbone, weights = from_classifier(state, path, kernel)
    model = YOLOXLite(DetectorPlan(**{**plan.__dict__, "backbone": backbone}))
    for name, value in model.backbone.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, value)
    load_strictly(model.backbone, weights, path)
    return model


def from_classifier(
    state: Mapping[str, Tensor], source: str | Path = "the state", kernel: int | None = None
) -> tuple[MobilePlan, dict[str, Tensor]]:
    """The backbone of a classifier's state dict: its plan, and its weights by our names.

    Args:
        state: tensors by the names of torchvision's MobileNetV2, FNA or OFA (whole networks without gates).
        source: for messages.
        kernel: of OFA, 5 or 3: larger depthwise kernels become this large under the network's own matrices.

    Raises:
        UserError: the names or shapes are of none of them.
    """
    names = next((names for names in LAYOUTS.values() if f"{names.stem[0]}.weight" in state), None)
    if names is None:
        raise UserError(f"{source} is no MobileNetV2 of torchvision, network of FNA or of OFA: there is no stem")
    blocks: dict[tuple[int, ...], dict[str, dict[str, Tensor]]] = {}
    for name, value in state.items():
        found = names.block.match(name)
        if found is not None:
            place = tuple(int(number) for number in re.findall(r"\d+", found["block"]))
            blocks.setdefault(place, {}).setdefault(found["part"], {})[found["leaf"]] = value
    matrices: dict[tuple[int, ...], dict[int, Tensor]] = {}
    for name, value in state.items():
        if (matrix := _MATRIX.match(name)) is not None:
            matrices.setdefault((int(matrix[1]),), {})[int(matrix[2])] = value
    weights = {f"stem.conv.{leaf}": value for leaf, value in _leaves(state, names.stem[0]).items()}
    weights |= {f"stem.bn.{leaf}": value for leaf, value in _leaves(state, names.stem[1]).items()}
    stages: list[list[BlockPlan]] = []
    incoming = stem = len(weights["stem.conv.weight"])
    for place, parts in sorted(blocks.items()):
        whole = len(parts) == len(names.parts[0])
        ours = names.parts[0] if whole else names.parts[1]
        if set(parts) != set(ours):
            raise UserError(f"{source} has blocks of other parts than {', '.join(ours)}: got {', '.join(parts)}")
        made = {ours[part]: leaves for part, leaves in parts.items()}
        made["dw.conv"]["weight"] = _at_kernel(made["dw.conv"]["weight"], matrices.get(place, {}), kernel)
        side, width = made["dw.conv"]["weight"].shape[-1], len(made["proj.conv"]["weight"])
        expansion = len(made["dw.conv"]["weight"]) / incoming if whole else 1
        if width != incoming or not stages:
            stages.append([])
        number = min(len(stages), len(_STRIDES)) - 1
        stride = _STRIDES[number] if not stages[-1] else 1
        prefix = f"stages.{len(stages) - 1}.{len(stages[-1])}"
        stages[-1].append(BlockPlan("ibn", width, stride, side, expansion))
        weights |= {f"{prefix}.{part}.{leaf}": value for part, own in made.items() for leaf, value in own.items()}
        incoming = width
    if len(stages) != len(_STRIDES):
        raise UserError(f"{source} has {len(stages)} stages of blocks; networks of seven are known here")
    plan = MobilePlan(stem, tuple(map(tuple, stages)), (2, 4, 6), "relu6")
    plan.check()
    return plan, _with_our_input({name: _with_our_epsilon(name, weights) for name in weights})


def _leaves(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _with_our_epsilon(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    """Scales of normalizations such that with our epsilon the running statistics give the same."""
    value = weights[name]
    if not name.endswith("bn.weight"):
        return value
    variance = weights[name.removesuffix("weight") + "running_var"]
    return value * torch.sqrt((variance + NORM_EPSILON) / (variance + EPSILON))


def _with_our_input(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stem for BGR from 0 to 255 without normalization."""
    mean, deviation = torch.tensor(_MEAN), torch.tensor(_DEVIATION)
    kernel = weights["stem.conv.weight"]
    shift = (kernel * (mean / deviation)[:, None, None]).sum((1, 2, 3))  # what the mean takes away
    weights["stem.conv.weight"] = (kernel / (255 * deviation)[:, None, None]).flip(1)
    weights["stem.bn.running_mean"] = weights["stem.bn.running_mean"] + shift
    return weights


def _at_kernel(weight: Tensor, matrices: Mapping[int, Tensor], kernel: int | None) -> Tensor:
    """A depthwise kernel of at most this side as OFA makes it: the centre under the network's matrix, step by step."""
    while kernel is not None and weight.shape[-1] > kernel and weight.shape[-1] in matrices:
        side = weight.shape[-1] - 2
        centre = weight[..., 1:-1, 1:-1]
        weight = (centre.flatten(2) @ matrices[side + 2].T).reshape(len(weight), 1, side, side)
    return weight
