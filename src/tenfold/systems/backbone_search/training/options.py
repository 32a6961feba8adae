"""Settings of a training; light, for the settings of the experiment."""

from dataclasses import dataclass

from tenfold.errors import UserError


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

    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1
    plain_epochs: int = 0
    least: float = 0.05
    average: bool = True
    augment: str = "flips"

    def check(self, name: str) -> None:
        """Refuse settings out of range.

        Args:
            name: how messages call these settings.

        Raises:
            UserError: names the first.
        """
        ranges = {
            "epochs": (1, 10**6),
            "batch_size": (1, 10**6),
            "momentum": (0, 0.9999),
            "weight_decay": (0, 1),
            "warmup_epochs": (0, self.epochs),
            "plain_epochs": (0, self.epochs),
            "least": (0, 1),
        }
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                raise UserError(f"{name}.{key} must lie in {low} .. {high}; got {getattr(self, key)}")
        if not 0 < self.learning_rate <= 10:
            raise UserError(f"{name}.learning_rate must lie in (0, 10]; got {self.learning_rate}")
        if self.augment not in ("flips", "yolox"):
            raise UserError(f"{name}.augment is flips or yolox; got {self.augment!r}")
