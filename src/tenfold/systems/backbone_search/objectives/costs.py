"""Costs of a detector at the size it is deployed at: multiply-adds, parameters, peak activations.

Analytic, so that a limit is checked before anything is trained. Multiply-adds are those of convolutions, neck and head
included: half of what torch's ``FlopCounterMode`` counts, and half of the "FLOPs" of YOLOX's tables less what those
add for normalizations and activations.
"""

from dataclasses import replace
from functools import lru_cache

import torch

from tenfold.cost import measure_peak_memory
from tenfold.systems.backbone_search.detector.blocks import round8
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite


def count_costs(plan: DetectorPlan, height: int, width: int) -> dict[str, int]:
    """Multiply-adds of one image and parameters of a detector, without building it where it is of the mobile family.

    Args:
        plan: the detector.
        height: of the input, in pixels.
        width: of the input, in pixels.

    Returns:
        ``multiply_adds`` and ``parameters``.

    Example:
        >>> from tenfold.systems.backbone_search import mobiledet
        >>> count_costs(DetectorPlan(mobiledet("cpu")), 416, 416)["multiply_adds"]
        932385952
    """
    if not isinstance(plan.backbone, MobilePlan):
        return _built(plan, height, width)
    rest = _around(plan, height, width)
    adds, parameters = _mobile(plan.backbone, height, width)
    return {"multiply_adds": rest["multiply_adds"] + adds, "parameters": rest["parameters"] + parameters}


def _mobile(plan: MobilePlan, height: int, width: int) -> tuple[int, int]:
    """Multiply-adds and parameters of a mobile backbone, block by block."""
    height, width = -(-height // 2), -(-width // 2)
    adds, parameters, channels = 27 * plan.stem * height * width, 29 * plan.stem, plan.stem
    for block in (block for stage in plan.stages for block in stage):
        before = height * width
        height, width = -(-height // block.stride), -(-width // block.stride)
        after, area = height * width, block.kernel**2
        if block.operator == "tucker":
            inner, hidden = round8(channels * block.ranks[0]), round8(block.width * block.ranks[1])
            adds += channels * inner * before + inner * hidden * area * after
            parameters += channels * inner + 2 * inner + inner * hidden * area + 2 * hidden
        elif block.operator == "fused":
            hidden = round8(channels * block.expansion)
            adds += channels * hidden * area * after
            parameters += channels * hidden * area + 2 * hidden
        else:
            hidden = channels if block.expansion == 1 else round8(channels * block.expansion)
            if block.expansion != 1:
                adds += channels * hidden * before
                parameters += channels * hidden + 2 * hidden
            adds += hidden * area * after
            parameters += hidden * area + 2 * hidden
        if plan.se and block.operator != "tucker":
            gate = round8(hidden / 4)
            adds += 2 * hidden * gate
            parameters += 2 * hidden * gate + hidden + gate
        adds += hidden * block.width * after
        parameters += hidden * block.width + 2 * block.width
        channels = block.width
    return adds, parameters


def _around(plan: DetectorPlan, height: int, width: int) -> dict[str, int]:
    """Costs of neck and head, which depend on the backbone by the widths at its taps only, and linearly on these.

    A search asks for thousands of backbones: four detectors are built and the rest is computed.
    """
    assert isinstance(plan.backbone, MobilePlan)
    widths = tuple(plan.backbone.stages[tap][-1].width for tap in plan.backbone.taps)

    def built(taps: tuple[int, ...]) -> dict[str, int]:
        assert isinstance(plan.backbone, MobilePlan)
        return _built_around(replace(plan, backbone=_skeleton(plan.backbone, taps)), height, width)

    if plan.spp != "none":  # whose convolutions grow with the square
        return built(widths)
    base, step = built((8, 8, 8)), 8
    total = dict(base)
    for place in range(3):
        more = built(tuple(8 + step * (place == other) for other in range(3)))
        for name in total:
            total[name] += (more[name] - base[name]) // step * (widths[place] - 8)
    return total


def _skeleton(plan: MobilePlan, taps: tuple[int, ...]) -> MobilePlan:
    """The cheapest backbone with maps of these widths at the taps."""
    stages, before = [], 0
    for tap, width in zip(plan.taps, taps, strict=True):
        strides = [block.stride for stage in plan.stages[before : tap + 1] for block in stage if block.stride > 1]
        stages.append(tuple(BlockPlan("ibn", width, stride, expansion=1) for stride in strides))
        before = tap + 1
    return MobilePlan(8, tuple(stages), (0, 1, 2), plan.act)


@lru_cache(maxsize=4096)
def _built_around(plan: DetectorPlan, height: int, width: int) -> dict[str, int]:
    with torch.device("meta"):
        detector = YOLOXLite(plan)
    parameters = sum(p.numel() for name, p in detector.named_parameters() if not name.startswith("backbone."))
    records = detector.layout(height, width).records
    adds = sum(record.multiply_adds for record in records if not record.name.startswith("backbone."))
    return {"multiply_adds": adds, "parameters": parameters}


@lru_cache(maxsize=4096)
def _built(plan: DetectorPlan, height: int, width: int) -> dict[str, int]:
    with torch.device("meta"):
        detector = YOLOXLite(plan)
    parameters = sum(p.numel() for p in detector.parameters())
    return {"multiply_adds": detector.layout(height, width).multiply_adds, "parameters": parameters}


def peak_activations(detector: YOLOXLite, height: int, width: int) -> int:
    """Most bytes of feature maps that one image needs at once, weights not counted.

    Args:
        detector: its mode is left as it is; measured in eval mode.
        height: of the input.
        width: of the input.
    """
    training = detector.training
    image = torch.zeros(1, 3, height, width)
    with torch.inference_mode():
        peak = measure_peak_memory(lambda: detector.eval().detect(image))
    detector.train(training)
    return peak
