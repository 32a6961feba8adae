"""The neck: YOLOX's path-aggregation pyramid, light (depthwise) or full, over any backbone's three maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.backbone_search.detector.blocks import Activation, ConvBNAct, CSPLayer, convolution
from tenfold.systems.backbone_search.detector.channels import ChannelLayout, Flow, concatenate


class PAFPN(nn.Module):
    """Top-down, then bottom-up fusion of three maps; parts named as in the official code, order of concatenation too.

    Args:
        incoming: channels of the backbone's maps at strides 8, 16 and 32.
        widths: channels of the neck at the three strides.
        depth: bottlenecks of each CSP layer.
        depthwise: light convolutions.
        act: activation.
    """

    def __init__(
        self,
        incoming: Sequence[int],
        widths: Sequence[int],
        depth: int = 1,
        depthwise: bool = True,
        act: Activation = "silu",
    ) -> None:
        super().__init__()
        c3, c4, c5 = incoming
        n3, n4, n5 = widths

        def fuse(channels_in: int, channels_out: int) -> CSPLayer:
            return CSPLayer(channels_in, channels_out, depth, shortcut=False, depthwise=depthwise, act=act)

        self.lateral_conv0 = ConvBNAct(c5, n4, act=act)
        self.C3_p4 = fuse(n4 + c4, n4)
        self.reduce_conv1 = ConvBNAct(n4, n3, act=act)
        self.C3_p3 = fuse(n3 + c3, n3)
        self.bu_conv2 = convolution(n3, n3, 3, 2, act, depthwise)
        self.C3_n3 = fuse(2 * n3, n4)
        self.bu_conv1 = convolution(n4, n4, 3, 2, act, depthwise)
        self.C3_n4 = fuse(2 * n4, n5)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps at strides 8, 16 and 32, to fused ones at the same strides."""
        c3, c4, c5 = maps
        a5 = self.lateral_conv0(c5)
        p4 = self.C3_p4(torch.cat([F.interpolate(a5, scale_factor=2.0), c4], 1))
        a4 = self.reduce_conv1(p4)
        o3 = self.C3_p3(torch.cat([F.interpolate(a4, scale_factor=2.0), c3], 1))
        o4 = self.C3_n3(torch.cat([self.bu_conv2(o3), a4], 1))
        o5 = self.C3_n4(torch.cat([self.bu_conv1(o4), a5], 1))
        return [o3, o4, o5]

    def record(self, layout: ChannelLayout, name: str, maps: Sequence[Flow]) -> list[Flow]:
        """See ``ChannelLayout``."""
        c3, c4, c5 = maps

        def up(flow: Flow) -> Flow:
            return Flow(flow.axis, flow.height * 2, flow.width * 2)

        a5 = self.lateral_conv0.record(layout, f"{name}.lateral_conv0", c5)
        p4 = self.C3_p4.record(layout, f"{name}.C3_p4", concatenate(up(a5), c4))
        a4 = self.reduce_conv1.record(layout, f"{name}.reduce_conv1", p4)
        o3 = self.C3_p3.record(layout, f"{name}.C3_p3", concatenate(up(a4), c3))
        d3 = self.bu_conv2.record(layout, f"{name}.bu_conv2", o3)
        o4 = self.C3_n3.record(layout, f"{name}.C3_n3", concatenate(d3, a4))
        d4 = self.bu_conv1.record(layout, f"{name}.bu_conv1", o4)
        o5 = self.C3_n4.record(layout, f"{name}.C3_n4", concatenate(d4, a5))
        return [o3, o4, o5]
