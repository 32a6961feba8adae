"""Settings of a training; light, for the settings of the experiment."""

from dataclasses import dataclass
from typing import Literal

from tenfold.errors import UserError
from tenfold.settings import Count, NonNegativeFloat, PositiveFloat, PositiveInt, ProperShare, Share


@dataclass
class DetectorTraining:
    """How a detector is trained.

    Attributes:
        epochs: passes over the images.
        batch_size: images of a step, over all processes together.
        learning_rate: of a step; YOLOX takes 0.01 for 64 images and scales with their number.
        momentum: of stochastic gradient descent with Nesterov's form.
        weight_decay: on the weights of convolutions only.
        warmup_epochs: epochs of quadratic warm-up.
        plain_epochs: last epochs without mosaic, with the L1 term and the least learning rate.
        least: learning rate at the end, as a share.
        average: keep an exponential moving average of the weights, and deliver it.
        augment: ``flips``, or ``yolox`` (mosaic with its affine, colours, mirror, several sizes).
    """

    epochs: PositiveInt = 40
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 0.03
    momentum: ProperShare = 0.9
    weight_decay: Share = 5e-4
    warmup_epochs: NonNegativeFloat = 1
    plain_epochs: Count = 0
    least: Share = 0.05
    average: bool = True
    augment: Literal["flips", "yolox"] = "flips"

    def check(self) -> None:
        """Refuse epochs that do not fit into the training.

        Raises:
            UserError: warm-up or plain epochs are more than all.
        """
        for name in ("warmup_epochs", "plain_epochs"):
            if getattr(self, name) > self.epochs:
                raise UserError(f"{name} must be at most the {self.epochs} epochs of all; got {getattr(self, name)}")
