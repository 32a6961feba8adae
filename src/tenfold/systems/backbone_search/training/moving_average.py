"""The objective of a training, with YOLOX's moving average of the weights: decay 0.9998 (1 - exp(-updates / 2000))."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tenfold.systems.backbone_search.data.batches import DetectionBatch
from tenfold.systems.backbone_search.detector.loss import DetectionLoss

DECAY, RAMP = 0.9998, 2000.0


def decay_after(updates: int) -> float:
    """Decay of the average after so many updates: nearly 0 in short trainings, where a constant would freeze it."""
    return DECAY * (1 - math.exp(-updates / RAMP))


class DetectionObjective(nn.Module):
    """The loss of a batch, in the form that ``tenfold.training.fit`` takes; keeps the average as a part of itself.

    Args:
        model: whose weights are averaged.
        average: whether they are.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, average: bool) -> None:
        super().__init__()
        self.loss = DetectionLoss()
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if average else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, and its parts."""
        if self.training or model.training:
            if int(self.steps) > 0:
                self.update(model)  # with what the last step gave
            self.steps += 1
        height, width = batch.images.shape[-2:]
        losses = self.loss(model(batch.images), (height, width), batch.truth, offsets=batch.plain)
        parts = {"box": losses.box, "objectness": losses.objectness, "classes": losses.classes}
        return losses.total, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average of every floating-point tensor, batch statistics too, towards the model's."""
        if self.average is None:
            return
        own, averaged, current = model.state_dict(), [], []
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                averaged.append(value)
                current.append(own[name].detach().to(value.device))
            else:
                value.copy_(own[name])
        get_ema_multi_avg_fn(decay_after(int(self.steps)))(averaged, current, self.steps)  # all tensors in one call
