"""Convolutional blocks: of MobileDet (inverted bottleneck, fused, Tucker; squeeze-and-excitation) and of YOLOX.

Sources: Xiong et al., *MobileDets*, CVPR 2021, section 3, and the public TensorFlow object-detection code; Ge et al.,
*YOLOX*, arXiv 2107.08430, and its public code. Names of the parts are those of the checkpoints.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.systems.backbone_search.detector.channels import Axis, ChannelLayout, Flow, concatenate

Activation = Literal["silu", "relu", "relu6", "hswish", "lrelu"]
NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.03
"""Of every batch normalization, as in YOLOX."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
}


def round8(value: float) -> int:
    """A width as a multiple of eight, at least eight: ``max(8, 8 * floor(value / 8 + 1/2))``.

    Example:
        >>> round8(60.0), round8(3), round8(92)
        (64, 8, 96)
    """
    return max(8, 8 * int(value / 8 + 0.5))


def activation(name: Activation) -> nn.Module:
    """A fresh activation module, in place where the gradient needs its output only: else torch copies the input."""
    if name == "lrelu":
        return nn.LeakyReLU(0.1, inplace=True)
    return _ACTIVATIONS[name](inplace=name.startswith("relu"))


class ConvBNAct(nn.Module):
    """Convolution without bias, batch normalization, activation.

    Args:
        incoming: input channels.
        outgoing: output channels.
        kernel: side of the kernel; padding is ``kernel // 2`` on both sides.
        stride: of both axes.
        depthwise: one filter per channel.
        act: activation, or ``None`` for a linear output.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        act: Activation | None = "silu",
    ) -> None:
        super().__init__()
        groups = incoming if depthwise else 1
        self.conv = nn.Conv2d(incoming, outgoing, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outgoing, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        self.act = nn.Identity() if act is None else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height / stride, width / stride)``."""
        return self.act(self.bn(self.conv(x)))

    def record(self, layout: ChannelLayout, name: str, flow: Flow, group: str | Axis | None = None) -> Flow:
        """Tell ``layout`` what this computes; see ``ChannelLayout``."""
        return layout.convolution(
            f"{name}.conv",
            flow,
            name if group is None else group,
            out=self.conv.out_channels,
            kernel=self.conv.kernel_size[0],
            stride=self.conv.stride[0],
            depthwise=self.conv.groups > 1 or (self.conv.in_channels == 1 and self.conv.out_channels == 1),
            norm=f"{name}.bn",
        )


class DepthwiseSeparable(nn.Module):
    """YOLOX's light convolution: depthwise, then 1 x 1, each with normalization and activation."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int = 3, stride: int = 1, act: Activation = "silu"
    ) -> None:
        super().__init__()
        self.dconv = ConvBNAct(incoming, incoming, kernel, stride, depthwise=True, act=act)
        self.pconv = ConvBNAct(incoming, outgoing, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height / stride, width / stride)``."""
        return self.pconv(self.dconv(x))

    def record(self, layout: ChannelLayout, name: str, flow: Flow, group: str | Axis | None = None) -> Flow:
        """See ``ChannelLayout``."""
        flow = self.dconv.record(layout, f"{name}.dconv", flow)
        return self.pconv.record(layout, f"{name}.pconv", flow, group)


def convolution(
    incoming: int, outgoing: int, kernel: int, stride: int, act: Activation, depthwise: bool
) -> ConvBNAct | DepthwiseSeparable:
    """A convolution of YOLOX: full, or depthwise separable in its light networks."""
    if depthwise:
        return DepthwiseSeparable(incoming, outgoing, kernel, stride, act)
    return ConvBNAct(incoming, outgoing, kernel, stride, act=act)


class SqueezeExcite(nn.Module):
    """Channel gate: mean over the map, 1 x 1 to a quarter, activation, 1 x 1 back, sigmoid, product.

    Args:
        channels: gated channels; the inner width is ``round8(channels / 4)``.
        act: inner activation.
    """

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, round8(channels / 4), 1)
        self.act = activation(act)
        self.expand = nn.Conv2d(round8(channels / 4), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)``, same shape out."""
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        point = Flow(flow.axis, 1, 1)
        inner = self.reduce.out_channels
        squeezed = layout.convolution(f"{name}.reduce", point, f"{name}.reduce", out=inner, kernel=1, gate=True)
        layout.convolution(f"{name}.expand", squeezed, flow.axis, out=flow.channels, kernel=1, gate=True)
        return flow


class _Residual(nn.Module):
    """What the three mobile blocks share: an optional gate, a linear projection, an optional shortcut."""

    residual: bool
    proj: ConvBNAct
    se: SqueezeExcite | None

    def _finish(self, x: Tensor, inner: Tensor) -> Tensor:
        if self.se is not None:
            inner = self.se(inner)
        out = self.proj(inner)
        return x + out if self.residual else out

    def _record_end(self, layout: ChannelLayout, name: str, flow: Flow, inner: Flow) -> Flow:
        if self.se is not None:
            inner = self.se.record(layout, f"{name}.se", inner)
        return self.proj.record(layout, f"{name}.proj", inner, flow.axis if self.residual else f"{name}.out")


class InvertedBottleneck(_Residual):
    """``ibn(kernel, expansion)``: 1 x 1 to the hidden width, depthwise, [gate,] 1 x 1; no first part at expansion 1."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, stride: int, expansion: float, act: Activation,
        se: bool = False, residual: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = round8(incoming * expansion) if expansion != 1 else incoming
        self.residual = residual and stride == 1 and incoming == outgoing
        self.expand = ConvBNAct(incoming, hidden, act=act) if expansion != 1 else None
        self.dw = ConvBNAct(hidden, hidden, kernel, stride, depthwise=True, act=act)
        self.se = SqueezeExcite(hidden, act) if se else None
        self.proj = ConvBNAct(hidden, outgoing, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height / stride, width / stride)``."""
        inner = x if self.expand is None else self.expand(x)
        return self._finish(x, self.dw(inner))

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        inner = flow if self.expand is None else self.expand.record(layout, f"{name}.expand", flow, f"{name}.hidden")
        inner = self.dw.record(layout, f"{name}.dw", inner)
        return self._record_end(layout, name, flow, inner)


class FusedBottleneck(_Residual):
    """``fused(kernel, expansion)``: a full convolution to the hidden width, [gate,] 1 x 1."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, stride: int, expansion: float, act: Activation,
        se: bool = False, residual: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = round8(incoming * expansion)
        self.residual = residual and stride == 1 and incoming == outgoing
        self.fused = ConvBNAct(incoming, hidden, kernel, stride, act=act)
        self.se = SqueezeExcite(hidden, act) if se else None
        self.proj = ConvBNAct(hidden, outgoing, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height / stride, width / stride)``."""
        return self._finish(x, self.fused(x))

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        inner = self.fused.record(layout, f"{name}.fused", flow, f"{name}.hidden")
        return self._record_end(layout, name, flow, inner)


class TuckerBottleneck(_Residual):
    """``tucker(kernel, rank_in, rank_out)``: 1 x 1 down, a full convolution between the ranks, 1 x 1 up."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int, stride: int, ranks: tuple[float, float], act: Activation,
        residual: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        inner, outer = round8(incoming * ranks[0]), round8(outgoing * ranks[1])
        self.residual = residual and stride == 1 and incoming == outgoing
        self.reduce = ConvBNAct(incoming, inner, act=act)
        self.core = ConvBNAct(inner, outer, kernel, stride, act=act)
        self.se = None
        self.proj = ConvBNAct(outer, outgoing, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height / stride, width / stride)``."""
        return self._finish(x, self.core(self.reduce(x)))

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        inner = self.reduce.record(layout, f"{name}.reduce", flow, f"{name}.rank_in")
        inner = self.core.record(layout, f"{name}.core", inner, f"{name}.hidden")
        return self._record_end(layout, name, flow, inner)


class Bottleneck(nn.Module):
    """YOLOX's bottleneck: 1 x 1, then 3 x 3 (light or full), with a shortcut where asked."""

    def __init__(self, channels: int, shortcut: bool, act: Activation, depthwise: bool) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(channels, channels, act=act)
        self.conv2 = convolution(channels, channels, 3, 1, act, depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)``, same shape out."""
        out = self.conv2(self.conv1(x))
        return x + out if self.shortcut else out

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        inner = self.conv1.record(layout, f"{name}.conv1", flow)
        return self.conv2.record(layout, f"{name}.conv2", inner, flow.axis if self.shortcut else None)


class CSPLayer(nn.Module):
    """Cross-stage partial layer of YOLOX: bottlenecks on one half, nothing on the other, concatenated, 1 x 1.

    Args:
        incoming: input channels.
        outgoing: output channels.
        depth: number of bottlenecks.
        shortcut: whether bottlenecks add their input.
        ratio: width of each half as a share of ``outgoing``.
        depthwise: light bottlenecks.
        act: activation.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        depth: int = 1,
        shortcut: bool = True,
        ratio: float = 0.5,
        depthwise: bool = False,
        act: Activation = "silu",
    ) -> None:
        super().__init__()
        hidden = int(outgoing * ratio)
        self.conv1 = ConvBNAct(incoming, hidden, act=act)
        self.conv2 = ConvBNAct(incoming, hidden, act=act)
        self.conv3 = ConvBNAct(2 * hidden, outgoing, act=act)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, act, depthwise) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height, width)``."""
        return self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], dim=1))

    def record(self, layout: ChannelLayout, name: str, flow: Flow, group: str | Axis | None = None) -> Flow:
        """See ``ChannelLayout``."""
        first = self.conv1.record(layout, f"{name}.conv1", flow)
        for index, block in enumerate(self.m):
            first = block.record(layout, f"{name}.m.{index}", first)  # type: ignore[operator]
        second = self.conv2.record(layout, f"{name}.conv2", flow)
        return self.conv3.record(layout, f"{name}.conv3", concatenate(first, second), group)
