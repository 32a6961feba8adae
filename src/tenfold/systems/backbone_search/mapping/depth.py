"""Depth: the seed with the target's number of blocks and operators, still at its own widths.

Between the seed and this network blocks are copied, dropped, repeated or converted; between this network and the target
only sizes differ, and names agree one to one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import CSPLayer, _Residual, round8
from tenfold.systems.backbone_search.detector.darknet import CSPDarknet, DarknetPlan
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobileBackbone, MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import YOLOXLite
from tenfold.systems.backbone_search.mapping.operators import convert

Deepen = Literal["identity", "copy"]


@dataclass(frozen=True)
class Copied:
    """Where a block of the target comes from.

    Attributes:
        source: number of the seed's block in the same stage.
        added: the target has more blocks than the seed, and this is one of those.
    """

    source: int
    added: bool


def choose_blocks(have: int, want: int, last_scales: Sequence[float], keep_first: bool, in_order: bool) -> list[Copied]:
    """Which seed block each of the target's blocks takes.

    Args:
        have: blocks of the seed's stage.
        want: blocks of the target's stage.
        last_scales: for each seed block the summed magnitude of its last normalization's scales.
        keep_first: the first block changes the shape and is never dropped.
        in_order: FNA's rule: the first blocks stay, the last one is repeated.
    """
    if want >= have:
        return [Copied(min(j, have - 1), j >= have) for j in range(want)]
    if in_order:
        return [Copied(j, False) for j in range(want)]
    droppable = sorted(range(1 if keep_first else 0, have), key=lambda j: last_scales[j])
    dropped = set(droppable[: have - want])
    return [Copied(j, False) for j in range(have) if j not in dropped]


def at_target_depth(
    source: YOLOXLite, target: YOLOXLite, *, in_order: bool, deepen: Deepen
) -> tuple[YOLOXLite, set[str]]:
    """The source with the target's blocks and operators at the source's widths and kernels.

    Args:
        source: the trained seed.
        target: gives depths, operators, shortcuts.
        in_order: FNA's rule of depth.
        deepen: added residual blocks begin as the identity, or as copies of the last.

    Returns:
        The network, and the names of the blocks whose function is not the seed's (converted, added, made afresh).

    Raises:
        UserError: the two networks are of different families or numbers of stages.
    """
    ours, theirs = source.plan.backbone, target.plan.backbone
    if isinstance(ours, MobilePlan) and isinstance(theirs, MobilePlan):
        if len(ours.stages) != len(theirs.stages) or ours.se != theirs.se:
            raise UserError(
                f"weights can be mapped between backbones of equally many stages, both with or without gates; "
                f"got {len(ours.stages)} and {len(theirs.stages)} stages"
            )
        return _mobile(source, target, in_order, deepen)
    if isinstance(ours, DarknetPlan) and isinstance(theirs, DarknetPlan):
        if ours.depthwise != theirs.depthwise or ours.stem != theirs.stem:
            raise UserError("weights can be mapped between CSPDarknets of one kind of convolution and stem")
        return _darknet(source, target, in_order, deepen)
    raise UserError("weights can be mapped within one family, mobile or csp, not between them")


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _mobile(source: YOLOXLite, target: YOLOXLite, in_order: bool, deepen: Deepen) -> tuple[YOLOXLite, set[str]]:
    backbone, wanted = source.backbone, target.plan.backbone
    assert isinstance(backbone, MobileBackbone) and isinstance(wanted, MobilePlan)
    own, stages, origins, dropped = backbone.plan, [], [], False
    incoming = own.stem
    trained: Any = backbone.stages
    for number, aims in enumerate(wanted.stages):
        blocks = own.stages[number]
        scales = [float(block.proj.bn.weight.detach().abs().sum()) for block in trained[number]]
        chosen = choose_blocks(len(blocks), len(aims), scales, keep_first=True, in_order=in_order)
        made = []
        for position, (copied, aim) in enumerate(zip(chosen, aims, strict=True)):
            block = trained[number][copied.source]
            width_in = incoming if position == 0 else blocks[0].width
            made.append(_intermediate(blocks[copied.source], block, aim, width_in))
        stages.append(tuple(made))
        origins.append(chosen)
        dropped |= len(aims) < len(blocks)
        incoming = blocks[0].width
    plan = replace(own, stages=tuple(stages), act=wanted.act, taps=wanted.taps)
    middle = YOLOXLite(replace(source.plan, backbone=plan, spp=target.plan.spp))
    state, seed = middle.state_dict(), source.state_dict()
    changed = {"backbone"} if dropped else set()
    for name, value in seed.items():
        if not name.startswith("backbone.stages.") and name in state:
            state[name] = value.clone()
    made_stages: Any = middle.backbone.stages
    for number, chosen in enumerate(origins):
        for position, copied in enumerate(chosen):
            prefix = f"backbone.stages.{number}.{position}"
            block = made_stages[number][position]
            weights = _part(seed, f"backbone.stages.{number}.{copied.source}")
            before, now = own.stages[number][copied.source], plan.stages[number][position]
            if before.operator != now.operator:
                ranks = (round8(_width_in(block) * now.ranks[0]), round8(now.width * now.ranks[1]))
                weights = convert(weights, before.operator, now.operator, ranks)
                changed.add(prefix)
            _fill(state, prefix, weights, zero=in_order)
            if (f"{prefix}.expand.conv.weight" in state) != ("expand.conv.weight" in weights):
                changed.add(prefix)
            if copied.added:
                changed.add(prefix)
                if deepen == "identity" and not in_order:
                    if before.stride == 2 or _width_in(block) != before.width or not block.residual:
                        # The only seed block changes the shape: its weights mean nothing here.
                        _keep_fresh(state, prefix, middle)
                    if block.residual:
                        state[f"{prefix}.proj.bn.weight"] = torch.zeros_like(state[f"{prefix}.proj.bn.weight"])
                        state[f"{prefix}.proj.bn.bias"] = torch.zeros_like(state[f"{prefix}.proj.bn.bias"])
                        changed.discard(prefix)
    middle.load_state_dict(state)
    return middle, changed


def _width_in(block: _Residual) -> int:
    return next(module for module in block.modules() if isinstance(module, torch.nn.Conv2d)).in_channels


def _intermediate(before: BlockPlan, block: _Residual, aim: BlockPlan, width_in: int) -> BlockPlan:
    """The source's width, hidden width and kernel under the target's operator, stride and shortcut."""
    expansion = block.proj.conv.in_channels / width_in
    if aim.operator == "ibn" and aim.expansion == 1:
        expansion = 1
    elif expansion == 1:
        expansion = 1 + 1e-9  # the same width, but with the first convolution that the target has
    return BlockPlan(aim.operator, before.width, aim.stride, before.kernel, expansion, aim.ranks, aim.residual)


def _fill(state: dict[str, Tensor], prefix: str, weights: Mapping[str, Tensor], zero: bool) -> None:
    """Copy what fits; where an added block reads fewer channels than its source, the common part."""
    for name, value in weights.items():
        key = f"{prefix}.{name}"
        if key not in state:
            continue
        own = state[key]
        if own.shape == value.shape:
            state[key] = value.clone()
            continue
        common = tuple(slice(0, min(a, b)) for a, b in zip(own.shape, value.shape, strict=True))
        state[key] = torch.zeros_like(own) if zero and own.ndim > 1 else own.clone()
        state[key][common] = value[common]


def _keep_fresh(state: dict[str, Tensor], prefix: str, network: YOLOXLite) -> None:
    for name, value in network.state_dict().items():
        if name.startswith(f"{prefix}."):
            state[name] = value.clone()


def _darknet(source: YOLOXLite, target: YOLOXLite, in_order: bool, deepen: Deepen) -> tuple[YOLOXLite, set[str]]:
    backbone, wanted = source.backbone, target.plan.backbone
    assert isinstance(backbone, CSPDarknet) and isinstance(wanted, DarknetPlan)
    plan = replace(backbone.plan, depths=wanted.depths, act=wanted.act)
    middle = YOLOXLite(replace(source.plan, backbone=plan, depth=target.plan.depth))
    state, seed, changed = middle.state_dict(), source.state_dict(), set()
    layers = {name: layer for name, layer in source.named_modules() if isinstance(layer, CSPLayer)}
    state |= {name: value.clone() for name, value in seed.items() if name in state and ".m." not in name}
    for name, layer in layers.items():
        aim: Any = middle.get_submodule(f"{name}.m")
        want = len(aim)
        blocks: Any = layer.m
        ends: list[Any] = [_last(block.conv2) for block in blocks]
        scales = [float(end.bn.weight.detach().abs().sum()) for end in ends]
        chosen = choose_blocks(len(blocks), want, scales, keep_first=False, in_order=in_order)
        for position, copied in enumerate(chosen):
            prefix = f"{name}.m.{position}"
            for part, value in _part(seed, f"{name}.m.{copied.source}").items():
                state[f"{prefix}.{part}"] = value.clone()
            if copied.added:
                block: Any = middle.get_submodule(prefix)
                if deepen == "identity" and not in_order and block.shortcut:
                    end = "conv2.pconv.bn" if plan.depthwise else "conv2.bn"
                    for part in ("weight", "bias"):
                        state[f"{prefix}.{end}.{part}"] = torch.zeros_like(state[f"{prefix}.{end}.{part}"])
                else:
                    changed.add(prefix)
        if want < len(blocks):
            changed.add(name)
    middle.load_state_dict(state)
    return middle, changed


def _last(convolution: torch.nn.Module) -> torch.nn.Module:
    return getattr(convolution, "pconv", convolution)
