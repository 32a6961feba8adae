"""YOLOX-Lite: any backbone with maps at strides 8, 16 and 32, a light PAFPN and a light decoupled head."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.channels import ChannelLayout
from tenfold.systems.backbone_search.detector.darknet import CSPDarknet, DarknetPlan, PyramidPooling, TinyPyramidPooling
from tenfold.systems.backbone_search.detector.head import DecoupledHead, decode, make_grid
from tenfold.systems.backbone_search.detector.mobile import MobileBackbone, MobilePlan, image_flow
from tenfold.systems.backbone_search.detector.pafpn import PAFPN


@dataclass(frozen=True)
class DetectorPlan:
    """A whole detector as plain values.

    Attributes:
        backbone: of either family.
        num_classes: number of classes.
        neck: channels of the neck at strides 8, 16 and 32.
        head: channels of the head.
        depth: bottlenecks of each CSP layer of the neck.
        depthwise: light convolutions in neck and head.
        spp: ``none``; ``max`` or ``ti`` put a pyramid of maxima after a mobile backbone's last stage.
    """

    backbone: MobilePlan | DarknetPlan
    num_classes: int = 80
    neck: tuple[int, int, int] = (64, 128, 256)
    head: int = 64
    depth: int = 1
    depthwise: bool = True
    spp: Literal["none", "max", "ti"] = "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        family = "mobile" if isinstance(self.backbone, MobilePlan) else "csp"
        return {**asdict(self), "backbone": {"family": family, **self.backbone.to_dict()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DetectorPlan":
        """A plan from what ``to_dict`` gave.

        Raises:
            UserError: a value is missing, unknown or out of range.
        """
        try:
            backbone = dict(values["backbone"])
            family: Any = {"mobile": MobilePlan, "csp": DarknetPlan}[backbone.pop("family")]
            plan = cls(**{**values, "backbone": family.from_dict(backbone), "neck": tuple(values["neck"])})
            widths = [plan.num_classes, plan.head, plan.depth, *plan.neck]
            right = len(plan.neck) == 3 and all(isinstance(w, int) and 1 <= w <= 8192 for w in widths)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"this is not the plan of a detector: {' '.join(str(error).split())}") from error
        if not right or plan.spp not in ("none", "max", "ti"):
            raise UserError("a detector has three neck widths, a head, a depth and classes of 1 to 8192 each")
        return plan


class YOLOXLite(nn.Module):
    """The detector. Images are BGR, 0 to 255, sides multiples of 32, without further normalization.

    Args:
        plan: see ``DetectorPlan``.

    Example:
        >>> import torch
        >>> from tenfold.systems.backbone_search import DetectorPlan, YOLOXLite, mobiledet
        >>> detector = YOLOXLite(DetectorPlan(mobiledet("cpu", 0.5), num_classes=3)).eval()
        >>> detector(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 84, 8])
    """

    def __init__(self, plan: DetectorPlan) -> None:
        super().__init__()
        self.plan = plan
        backbone = plan.backbone
        act = backbone.act
        self.backbone = MobileBackbone(backbone) if isinstance(backbone, MobilePlan) else CSPDarknet(backbone)
        c3, c4, c5 = self.backbone.channels
        pooling = {"none": None, "max": PyramidPooling, "ti": TinyPyramidPooling}[plan.spp]
        self.spp = None if pooling is None else pooling(c5, c5, act)
        self.neck = PAFPN((c3, c4, c5), plan.neck, plan.depth, plan.depthwise, act)
        self.head = DecoupledHead(plan.neck, plan.head, plan.num_classes, plan.depthwise, act)

    def forward(self, images: Tensor) -> Tensor:
        """Raw outputs ``(batch, cells, 5 + classes)`` of images ``(batch, 3, height, width)``; see the head."""
        maps = self.backbone(images)
        if self.spp is not None:
            maps = [*maps[:2], self.spp(maps[2])]
        return self.head(self.neck(maps))

    def detect(self, images: Tensor) -> Tensor:
        """Boxes in pixels and probabilities, before any suppression.

        Args:
            images: ``(batch, 3, height, width)``.

        Returns:
            ``(batch, cells, 5 + classes)``: centre x, centre y, width, height, objectness, classes.
        """
        import torch

        raw = self(images)
        places, strides = make_grid(images.shape[-2], images.shape[-1], images.device)
        return torch.cat([decode(raw, places, strides), raw[..., 4:].float().sigmoid()], -1)

    def layout(self, height: int = 32, width: int = 32) -> ChannelLayout:
        """Convolutions, channel groups and multiply-adds for images of this size."""
        layout = ChannelLayout()
        maps = self.backbone.record(layout, "backbone", image_flow(height, width))
        if self.spp is not None:
            maps = [*maps[:2], self.spp.record(layout, "spp", maps[2])]
        self.head.record(layout, "head", self.neck.record(layout, "neck", maps))
        return layout


def yolox(
    name: Literal["nano", "tiny", "s"], num_classes: int = 80, stem: Literal["focus", "conv"] = "focus"
) -> DetectorPlan:
    """An official YOLOX as a plan, into which its official weights load strictly.

    Args:
        name: ``nano``, ``tiny`` or ``s``.
        num_classes: number of classes.
        stem: ``focus`` as published; ``conv`` is the same function in one convolution.
    """
    if name not in ("nano", "tiny", "s"):
        raise UserError(f"there is no YOLOX {name!r} here; there are nano, tiny and s")
    base = {"nano": 16, "tiny": 24, "s": 32}[name]
    widths = (base, 2 * base, 4 * base, 8 * base, 16 * base)
    backbone = DarknetPlan(widths, (1, 3, 3, 1), depthwise=name == "nano", stem=stem)
    return DetectorPlan(backbone, num_classes, widths[2:], 4 * base, 1, depthwise=name == "nano")
