"""Heads (official code: ``SeparateTaskHead``): all decoder layers at once, each with its own weights, by grouping."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

OUTPUTS: Mapping[str, int] = {"center": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
"""Numbers of a box by the name of their head, in the order in which they are concatenated."""


class GroupedLayerNorm(nn.Module):
    """Layer normalization of ``(batch, groups channels, queries)`` over the channels of each group."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        batch, channels, length = x.shape
        grouped = x.view(batch, self.groups, channels // self.groups, length)
        centred = grouped - grouped.mean(2, keepdim=True)
        normal = centred / (centred.square().mean(2, keepdim=True) + self.eps).sqrt()
        return normal.view(batch, channels, length) * self.weight[:, None] + self.bias[:, None]


class TaskHead(nn.Module):
    """Boxes and class logits of one group of classes, from all decoder layers' outputs.

    Args:
        dim: of the queries.
        classes: classes of the group.
        layers: decoder layers, each with weights of its own.
        hidden: channels between the two convolutions.
        kernel: of the convolutions over the axis of the queries: 1, and 3 in the LiDAR-only configuration (so in the
            official code, though neighbours on that axis have nothing to do with each other).
        bias: initial bias of the class logits.
        small: start with outputs near zero, boxes at their reference points (not in the paper; for training from
            scratch), and not as published (Kaiming).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        layers: int,
        *,
        hidden: int = 64,
        kernel: int = 1,
        bias: float = -2.19,
        small: bool = False,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.names = [*OUTPUTS, "cls_logits"]
        for name in self.names:
            width = classes if name == "cls_logits" else OUTPUTS[name]
            head = nn.Sequential(
                nn.Conv1d(dim * layers, hidden * layers, kernel, padding=kernel // 2, groups=layers, bias=False),
                GroupedLayerNorm(hidden * layers, layers),
                nn.ReLU(),
                nn.Conv1d(hidden * layers, width * layers, kernel, padding=kernel // 2, groups=layers),
            )
            for part in head:
                if isinstance(part, nn.Conv1d):
                    nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
            last = head[-1]
            assert isinstance(last, nn.Conv1d) and last.bias is not None
            if small:
                nn.init.normal_(last.weight, std=0.01)
            if name == "cls_logits":
                nn.init.constant_(last.bias, bias)
            self.add_module(name, head)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs by name, ``(layers, batch, queries, n)``, of ``x`` ``(layers, batch, queries, dim)``."""
        layers, batch, queries, dim = x.shape
        flat = x.permute(1, 0, 3, 2).reshape(batch, layers * dim, queries)
        return {
            name: self.get_submodule(name)(flat).view(batch, layers, -1, queries).permute(1, 0, 3, 2)
            for name in self.names
        }
