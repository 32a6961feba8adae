"""Networks for the Adversarial Robustness Toolbox (extra ``art``): its attacks and defences take what it wraps.

What to know of ART 1.20's own defences: its STRIP takes the entropy over images instead of classes, its
spectral signatures do not centre the features, its activation clustering flags one cluster of every class. Those here
do not have these defects; the wrapper is for what is not here.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier


class _OfPixels(nn.Module):
    """The network of pixels in [0, 1], with gradients all the way to them."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, probabilities: bool) -> None:
        super().__init__()
        self.network, self.preprocessing, self.probabilities = network, preprocessing, probabilities

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.network(self.preprocessing.normalize(pixels))
        return logits.softmax(1) if self.probabilities else logits


def to_art(
    network: nn.Module, preprocessing: Preprocessing, num_classes: int, *, probabilities: bool = False
) -> "PyTorchClassifier":
    """ART's classifier of a network, which takes ``(n, channels, height, width)`` float32 pixels in [0, 1].

    Args:
        network: of normalized images, on the device that it is to run on; in evaluation mode afterwards.
        preprocessing: what it expects; becomes part of the classifier, so that attacks are limited in pixels.
        num_classes: of its outputs.
        probabilities: answer with probabilities, which some of ART's defences take for granted; else with logits, which
            its gradient attacks need.

    Raises:
        UserError: ART is not installed.
    """
    try:
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise UserError("the Adversarial Robustness Toolbox is not installed: pip install 'tenfold[art]'") from error
    device = next(network.parameters(), torch.zeros(())).device
    loss: nn.Module = nn.NLLLoss() if probabilities else nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(
        model=_OfPixels(network, preprocessing, probabilities).eval(),
        loss=loss,
        input_shape=preprocessing.image_shape,
        nb_classes=num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if device.type == "cpu" else "gpu",
    )
    classifier.model.to(device)
    return classifier
