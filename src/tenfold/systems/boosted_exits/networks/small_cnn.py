"""A small convolutional network with exits, for the presets that run on a processor."""

from collections.abc import Sequence

from torch import nn

from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel


class _ConvHead(nn.Sequential):
    """3x3 convolution, batch normalization, ReLU, global average pool, linear: ``(batch, c, h, w)`` to logits."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(
            _conv_block(width, width, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )


def _conv_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def small_cnn(
    *,
    num_classes: int,
    image_channels: int = 1,
    widths: Sequence[int] = (8, 16, 16, 24, 24),
    reweight: float | Sequence[float] = 0.5,
    rescale: bool = True,
) -> EarlyExitModel:
    """A convolutional network with one exit per stage, small enough to train on a processor in seconds.

    A stem halves the resolution; stage n is a 3x3 convolution to ``widths[n]`` channels with batch normalization and
    ReLU, of stride 2 where the width grows. Not of the paper: it carries the presets ``tiny`` and ``small``.

    Args:
        num_classes: number of classes.
        image_channels: channels of the input ``(batch, image_channels, height, width)``.
        widths: channels of each stage.
        reweight: see ``EarlyExitModel``.
        rescale: see ``EarlyExitModel``.

    Raises:
        ValueError: there are no widths, or one is not positive.
    """
    widths = list(widths)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must hold a positive number of channels per stage; got {widths}")
    stages = [
        _conv_block(before, width, stride=2 if width > before else 1)
        for before, width in zip(widths[:1] + widths[:-1], widths, strict=True)
    ]
    stages[0] = nn.Sequential(_conv_block(image_channels, widths[0], stride=2), stages[0])
    heads = [_ConvHead(width, num_classes) for width in widths]
    return EarlyExitModel(stages, heads, reweight=reweight, rescale=rescale)
