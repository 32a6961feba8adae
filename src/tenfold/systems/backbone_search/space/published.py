"""Published networks as plans: configuration strings of FNA (*Fast Neural Network Adaptation*, ICLR 2020)."""

import ast

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import Activation
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan

FNA_SSDLITE = (
    "[[16, 24], ['k5_e6', 'skip', 'skip', 'skip'], 2]|[[24, 32], ['k5_e6', 'k5_e6', 'k3_e6', 'k5_e6'], 2]|"
    "[[32, 64], ['k5_e6', 'k7_e6', 'k3_e6', 'skip'], 2]|[[64, 96], ['k7_e6', 'k7_e6', 'k7_e6', 'k7_e6'], 1]|"
    "[[96, 160], ['k5_e6', 'k7_e6', 'k7_e6', 'skip'], 2]|[[160, 320], ['k7_e6'], 1]"
)
FNA_RETINANET = (
    "[[16, 24], ['k3_e6', 'k3_e6'], 2]|[[24, 32], ['k7_e6', 'k5_e6'], 2]|"
    "[[32, 64], ['k3_e6', 'k5_e6', 'k7_e6', 'k3_e6'], 2]|[[64, 96], ['k5_e6', 'k7_e6'], 1]|"
    "[[96, 160], ['k7_e6', 'k7_e6', 'k7_e3', 'k7_e6'], 2]|[[160, 320], ['k7_e6'], 1]"
)


def parse_fna(text: str, stem: int = 32, first: int = 16, act: Activation = "relu6") -> MobilePlan:
    """A backbone from FNA's ``net_config``: ``[[in, out], ['k5_e6', 'skip', ...], stride]`` per stage, ``|`` between.

    Args:
        text: the string; read as literals, never executed.
        stem: channels of the stem.
        first: channels of the first block, which has expansion 1.
        act: activation.

    Raises:
        UserError: the text is no such string.
    """
    stages: list[tuple[BlockPlan, ...]] = [(BlockPlan("ibn", first, expansion=1),)]
    try:
        for part in text.split("|"):
            (_, width), layers, stride = ast.literal_eval(part.strip())
            blocks: list[BlockPlan] = []
            for layer in layers:
                if layer == "skip":  # FNA's loader moves them to the end of the stage, where they are nothing
                    continue
                kernel, expansion = layer.split("_")
                blocks.append(
                    BlockPlan("ibn", int(width), stride if not blocks else 1, int(kernel[1:]), int(expansion[1:]))
                )
            stages.append(tuple(blocks))
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"this is not a net_config of FNA: {' '.join(str(error).split())}") from error
    strides, taps, now = [], [], 2
    for stage in stages:
        now *= stage[0].stride if stage else 1
        strides.append(now)
    for wanted in (8, 16, 32):
        if wanted not in strides:
            raise UserError(f"this net_config has no stage at stride {wanted}")
        taps.append(max(number for number, stride in enumerate(strides) if stride == wanted))
    plan = MobilePlan(stem, tuple(stages), (taps[0], taps[1], taps[2]), act)
    plan.check()
    return plan
