"""What a found network is compared with: the seed shrunk evenly, and a MobileDet's shape, at the same multiply-adds."""

from collections.abc import Callable
from dataclasses import replace

from tenfold.systems.backbone_search.detector.blocks import round8
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.detector.mobile import MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan
from tenfold.systems.backbone_search.objectives.costs import count_costs

CLOSE = 0.05
"""Largest difference of multiply-adds of networks that are compared, as a share."""


def uniform_width(seed: DetectorPlan, scale: float, trim: float = 1.0) -> DetectorPlan:
    """The seed with all widths times ``scale``; ``trim`` scales hidden widths, to meet a cost between two widths."""
    backbone = seed.backbone
    if isinstance(backbone, DarknetPlan):
        stem, two, three, four, five = (round8(width * scale) for width in backbone.widths)
        widths = (stem, two, three, four, five)
        return replace(seed, backbone=replace(backbone, widths=widths, ratio=backbone.ratio * trim))
    stages = tuple(
        tuple(replace(b, width=round8(b.width * scale), expansion=_trimmed(b.expansion, trim)) for b in stage)
        for stage in backbone.stages
    )
    return replace(seed, backbone=replace(backbone, stages=stages))


def uniform_expansion(seed: DetectorPlan, scale: float, trim: float = 1.0) -> DetectorPlan:
    """The seed with all expansions (or the CSP ratio) times ``scale``."""
    return uniform_width(seed, 1.0, scale * trim)


def mobiledet_shape(seed: DetectorPlan, scale: float, trim: float = 1.0) -> DetectorPlan:
    """MobileDet-CPU's widths, depths, expansions and kernels on the seed's stages (Xiong et al., CVPR 2021, figure 6).

    With seven stages the published shape; with four, the stages of one stride taken together: widths 16, 32, 72, 144,
    depths 1, 2, 3, 2, first expansions 4, 8, 8, 8 and then 4, kernels 3, 3, 5, 5. Gates are left out, as the seed has
    none.
    """
    backbone = seed.backbone
    assert isinstance(backbone, MobilePlan)
    if len(backbone.stages) == 4:
        shape = [(16, [4], [3]), (32, [8, 4], [3, 3]), (72, [8, 4, 8], [5, 3, 3]), (144, [8, 4], [5, 5])]
    else:
        shape = [
            (8, [1], [3]), (16, [4], [3]), (32, [8, 4, 4, 4], [3] * 4), (72, [8, 8, 4, 4], [5, 3, 5, 3]),
            (72, [8] * 4, [3] * 4), (104, [8, 4, 4, 4], [5, 5, 5, 3]), (144, [8], [3]),
        ]  # fmt: skip
    stages = []
    for blocks, (width, expansions, kernels) in zip(backbone.stages, shape, strict=True):
        pattern = [
            replace(blocks[0], operator="ibn", width=round8(width * scale), stride=blocks[0].stride if j == 0 else 1,
                    kernel=kernel, expansion=_trimmed(expansion, trim))
            for j, (expansion, kernel) in enumerate(zip(expansions, kernels, strict=True))
        ]  # fmt: skip
        stages.append(tuple(pattern))
    return replace(seed, backbone=replace(backbone, stages=tuple(stages)))


def _trimmed(expansion: float, trim: float) -> float:
    return expansion if expansion == 1 else max(expansion * trim, 1.01)


SHAPES: dict[str, Callable[..., DetectorPlan]] = {
    "uniform-width": uniform_width,
    "uniform-expansion": uniform_expansion,
    "mobiledet": mobiledet_shape,
}


def at_cost(shape: str, seed: DetectorPlan, multiply_adds: float, height: int, width: int) -> DetectorPlan:
    """The network of a shape whose multiply-adds are nearest to a cost; widths come first, hidden widths fill the rest.

    Args:
        shape: one of ``SHAPES``.
        seed: the seed detector.
        multiply_adds: wanted.
        height: of the input.
        width: of the input.
    """
    make = SHAPES[shape]

    def off(plan: DetectorPlan) -> float:
        return abs(count_costs(plan, height, width)["multiply_adds"] / multiply_adds - 1)

    scales = sorted((step / 40 for step in range(4, 81)), key=lambda scale: off(make(seed, scale)))
    best = make(seed, scales[0])
    if off(best) <= CLOSE or shape == "uniform-expansion":
        return best
    trims = [1 + sign * step / 40 for step in range(1, 33) for sign in (1, -1) if 1 + sign * step / 40 > 0.2]
    for scale in dict.fromkeys(scales[:3]):
        for trim in trims:  # the least trim that comes close
            plan = make(seed, scale, trim)
            if off(plan) <= CLOSE:
                return plan
            best = min(best, plan, key=off)
    return best
