"""CSPDarknet, YOLOX's own backbone, with free widths and depths; parts named as in the official checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import Activation, ConvBNAct, CSPLayer, convolution
from tenfold.systems.backbone_search.detector.channels import Axis, ChannelLayout, Flow, concatenate


@dataclass(frozen=True)
class DarknetPlan:
    """A CSPDarknet.

    Attributes:
        widths: channels of the stem, dark2, dark3, dark4 and dark5.
        depths: bottlenecks of the CSP layers of dark2 to dark5.
        ratio: width of a CSP layer's half over its output's.
        depthwise: light convolutions, as in YOLOX-Nano.
        stem: ``focus`` as published, or ``conv``: one 6 x 6 convolution of stride 2, the same function.
        act: activation.
    """

    widths: tuple[int, int, int, int, int]
    depths: tuple[int, int, int, int]
    ratio: float = 0.5
    depthwise: bool = False
    stem: Literal["focus", "conv"] = "conv"
    act: Activation = "silu"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DarknetPlan":
        """A plan from what ``to_dict`` gave.

        Raises:
            UserError: a value is missing, unknown or out of range.
        """
        try:
            plan = cls(**{**values, "widths": tuple(values["widths"]), "depths": tuple(values["depths"])})
            right = len(plan.widths) == 5 and len(plan.depths) == 4 and 0 < plan.ratio <= 2
            right &= all(isinstance(w, int) and 2 <= w <= 8192 for w in plan.widths)
            right &= all(isinstance(d, int) and 1 <= d <= 64 for d in plan.depths)
            right &= plan.stem in ("focus", "conv") and plan.act in ("silu", "relu", "relu6", "hswish", "lrelu")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"this is not the plan of a CSPDarknet: {error}") from error
        if not right:
            raise UserError(
                f"a CSPDarknet has five widths of 2 to 8192, four depths of 1 to 64 and a ratio up to 2; got {plan}"
            )
        return plan


class Focus(nn.Module):
    """Every second pixel in both directions as channels (top and bottom left, top and bottom right), then 3 x 3."""

    def __init__(self, outgoing: int, act: Activation) -> None:
        super().__init__()
        self.conv = ConvBNAct(12, outgoing, 3, act=act)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, outgoing, height / 2, width / 2)``."""
        left, right = images[..., ::2], images[..., 1::2]
        return self.conv(torch.cat([left[..., ::2, :], left[..., 1::2, :], right[..., ::2, :], right[..., 1::2, :]], 1))

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        quarter = Flow(flow.axis * 4, -(-flow.height // 2), -(-flow.width // 2))
        return self.conv.record(layout, f"{name}.conv", quarter)


class StemConvolution(nn.Module):
    """A 6 x 6 convolution of stride 2 and padding 2: what a ``Focus`` computes, in one operation."""

    def __init__(self, outgoing: int, act: Activation) -> None:
        super().__init__()
        self.conv = ConvBNAct(3, outgoing, 6, 2, act=act)
        self.conv.conv.padding = (2, 2)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, outgoing, height / 2, width / 2)``."""
        return self.conv(images)

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> Flow:
        """See ``ChannelLayout``."""
        return self.conv.record(layout, f"{name}.conv", flow)


def focus_to_convolution(weight: Tensor) -> Tensor:
    """The 6 x 6 kernel that equals a Focus layer's 3 x 3 kernel over four interleaved images, exactly.

    Args:
        weight: ``(outgoing, 12, 3, 3)``.

    Returns:
        ``(outgoing, 3, 6, 6)``, for stride 2 and padding 2.
    """
    outgoing = weight.shape[0]
    parts = weight.reshape(outgoing, 2, 2, 3, 3, 3)  # column parity, row parity, colour, row, column
    return parts.permute(0, 3, 4, 2, 5, 1).reshape(outgoing, 3, 6, 6)


class PyramidPooling(nn.Module):
    """YOLOX's SPP bottleneck: 1 x 1 to a half, maxima over 5, 9 and 13 pixels, concatenated, 1 x 1.

    The two larger windows are computed by repeating the first, which gives the same maxima.
    """

    def __init__(self, incoming: int, outgoing: int, act: Activation) -> None:
        super().__init__()
        hidden = incoming // 2
        self.conv1 = ConvBNAct(incoming, hidden, act=act)
        self.conv2 = ConvBNAct(4 * hidden, outgoing, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height, width)``."""
        maps = [self.conv1(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.conv2(torch.cat(maps, dim=1))

    def record(self, layout: ChannelLayout, name: str, flow: Flow, group: str | Axis | None = None) -> Flow:
        """See ``ChannelLayout``."""
        half = self.conv1.record(layout, f"{name}.conv1", flow)
        return self.conv2.record(layout, f"{name}.conv2", concatenate(half, half, half, half), group)


class TinyPyramidPooling(PyramidPooling):
    """The same windows by chained 3 x 3 maxima (2, 4 and 6 of them), as YOLOX-ti-lite: some chips have no larger."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, incoming, height, width)`` to ``(batch, outgoing, height, width)``."""
        maps = [self.conv1(x)]
        for _ in range(3):
            inner = F.max_pool2d(maps[-1], 3, stride=1, padding=1)
            maps.append(F.max_pool2d(inner, 3, stride=1, padding=1))
        return self.conv2(torch.cat(maps, dim=1))


class CSPDarknet(nn.Module):
    """YOLOX's backbone of a ``DarknetPlan``."""

    def __init__(self, plan: DarknetPlan) -> None:
        super().__init__()
        self.plan = plan
        widths, act, light = plan.widths, plan.act, plan.depthwise
        self.stem = (Focus if plan.stem == "focus" else StemConvolution)(widths[0], act)
        for number in range(2, 6):
            before, now = widths[number - 2], widths[number - 1]
            parts: list[nn.Module] = [convolution(before, now, 3, 2, act, light)]
            if number == 5:
                parts.append(PyramidPooling(now, now, act))
            parts.append(CSPLayer(now, now, plan.depths[number - 2], number < 5, plan.ratio, light, act))
            setattr(self, f"dark{number}", nn.Sequential(*parts))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at strides 8, 16 and 32."""
        return self.plan.widths[2:]

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(batch, 3, height, width)`` to the maps at strides 8, 16 and 32."""
        x, maps = self.stem(images), []
        for number in range(2, 6):
            x = getattr(self, f"dark{number}")(x)
            maps.append(x)
        return maps[1:]

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> list[Flow]:
        """See ``ChannelLayout``."""
        flow, maps = self.stem.record(layout, f"{name}.stem", flow), []
        for number in range(2, 6):
            for index, part in enumerate(getattr(self, f"dark{number}")):
                flow = part.record(layout, f"{name}.dark{number}.{index}", flow)
            maps.append(flow)
        return maps[1:]
