"""The small networks of the field. Every one has ``embed(images) -> (n, d)``, the features before the classifier."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.networks.halving_pool import HalvingPool


def _norm(kind: str, channels: int) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind == "instance":
        return [nn.GroupNorm(channels, channels)]
    if kind == "group":
        return [nn.GroupNorm(4, channels)]
    if kind == "layer":
        return [nn.GroupNorm(1, channels)]
    if kind == "batch":
        return [nn.BatchNorm2d(channels)]
    raise UserError(f"there is no norm {kind!r}; there are: instance, batch, group, layer, none")


class SmallNetwork(nn.Module):
    """``classifier(flatten(features(x)))``.

    Args:
        features: the trunk.
        image_shape: ``(channels, height, width)``.
        classifier: makes the head for a number of features.
        width: that number; found by a probe where not given.
    """

    def __init__(
        self,
        features: nn.Module,
        image_shape: Sequence[int],
        classifier: Callable[[int], nn.Module],
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier(_probed_width(features, image_shape) if width is None else width)

    def embed(self, images: Tensor) -> Tensor:
        """``(n, d)`` features before the classifier."""
        return self.features(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """``(n, classes)`` logits of ``(n, channels, height, width)``."""
        return self.classifier(self.embed(images))


def _probed_width(features: nn.Module, image_shape: Sequence[int]) -> int:
    was_training = features.training
    with torch.no_grad():  # in evaluation mode: the probe must not move running statistics
        width = features.eval()(torch.zeros(1, *image_shape)).flatten(1).shape[1]
    features.train(was_training)
    return width


def _halved_width(image_shape: Sequence[int], channels: int, halvings: int) -> int:
    """Features of ``halvings`` blocks, each a convolution that keeps the sides and a pooling by two."""
    grown = 2 * (_first_padding(image_shape) - 1)
    height, width = ((side + grown) // 2**halvings for side in image_shape[1:])
    return channels * height * width


def _first_padding(image_shape: Sequence[int]) -> int:
    """3 for grey images, so that 28 pixels become 32 [code]; images smaller than the published ones are padded by 1."""
    return 3 if image_shape[0] == 1 and min(image_shape[1:]) >= 28 else 1


def _linear(classes: int) -> Callable[[int], nn.Module]:
    return lambda width: nn.Linear(width, classes)


def convnet(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    norm: str = "instance",
    pooling: str = "avg",
) -> nn.Module:
    """The network of gradient, distribution and trajectory matching [DC code].

    Args:
        image_shape: ``(channels, height, width)``.
        num_classes: number of classes.
        width: channels of every block.
        depth: blocks of convolution 3x3, norm, ReLU, pooling by two.
        norm: ``instance``, ``batch``, ``group``, ``layer`` or ``none``.
        pooling: ``avg``, ``max`` or ``none``.
    """
    pools: dict[str, Callable[[], list[nn.Module]]] = {
        "avg": lambda: [HalvingPool()],
        "max": lambda: [nn.MaxPool2d(2)],
        "none": list,
    }
    if pooling not in pools:
        raise UserError(f"there is no pooling {pooling!r}; there are: {', '.join(pools)}")
    channels, side = image_shape[0], min(image_shape[1:])
    if pooling != "none" and side < 2**depth:
        raise UserError(f"images {side} pixels wide cannot be halved {depth} times; set a smaller depth")
    layers: list[nn.Module] = []
    for block in range(depth):
        padding = _first_padding(image_shape) if block == 0 else 1
        layers += [nn.Conv2d(channels if block == 0 else width, width, 3, padding=padding)]
        layers += [*_norm(norm, width), nn.ReLU(inplace=True), *pools[pooling]()]
    features = _halved_width(image_shape, width, depth if pooling != "none" else 0)
    return SmallNetwork(nn.Sequential(*layers), image_shape, _linear(num_classes), features)


def convnet_baadd(
    image_shape: Sequence[int], num_classes: int, *, width: int = 128, depth: int = 3, hidden: int = 192
) -> nn.Module:
    """The attack's ConvNet: no norm, and a hidden layer in the classifier [baadd code]."""
    layers: list[nn.Module] = []
    for block in range(depth):
        padding = _first_padding(image_shape) if block == 0 else 1
        layers += [nn.Conv2d(image_shape[0] if block == 0 else width, width, 3, padding=padding)]
        layers += [nn.ReLU(inplace=True), HalvingPool()]
    return SmallNetwork(
        nn.Sequential(*layers),
        image_shape,
        lambda features: nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)),
        _halved_width(image_shape, width, depth),
    )


def _response_norm() -> nn.Module:
    return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)


def alexnet_baadd(image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The attack's AlexNet, of the cuda-convnet kind [baadd code]."""
    features = nn.Sequential(
        nn.Conv2d(image_shape[0], 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        _response_norm(),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.ReLU(),
        _response_norm(),
        nn.MaxPool2d(3, 2, padding=1),
    )
    return SmallNetwork(
        features,
        image_shape,
        lambda width: nn.Sequential(
            nn.Linear(width, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, num_classes)
        ),
    )


def mlp(image_shape: Sequence[int], num_classes: int, *, width: int = 128) -> nn.Module:
    """Two hidden layers [DC code]; the only one that takes 1 x 1 images (tables)."""
    inputs = image_shape[0] * image_shape[1] * image_shape[2]
    features = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return SmallNetwork(features, image_shape, _linear(num_classes))


def lenet(image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling [DC code]; below 16 pixels both convolutions are padded."""
    _at_least("lenet", image_shape, 4)
    small = min(image_shape[1:]) < 16
    padding = 2 if image_shape[0] == 1 or small else 0
    features = nn.Sequential(
        nn.Conv2d(image_shape[0], 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=2 if small else 0),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    with torch.no_grad():
        features(torch.zeros(1, *image_shape))  # sizes the lazy layer
    return SmallNetwork(features, image_shape, _linear(num_classes))


def alexnet(image_shape: Sequence[int], num_classes: int) -> nn.Module:
    """AlexNet in the field's small form, without hidden linear layers [DC code]."""
    _at_least("alexnet", image_shape, 8)
    features = nn.Sequential(
        nn.Conv2d(image_shape[0], 128, 5, padding=4 if image_shape[0] == 1 else 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 192, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(192, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return SmallNetwork(features, image_shape, _linear(num_classes))


def vgg11(image_shape: Sequence[int], num_classes: int, *, norm: str = "instance", width: int = 64) -> nn.Module:
    """VGG-11 with one linear layer [DC code]; what is too small to be halved is not."""
    plan = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")
    channels, side = image_shape[0], min(image_shape[1:])
    first = _first_padding(image_shape)
    side += 2 * (first - 1)
    layers: list[nn.Module] = []
    for position, step in enumerate(plan):
        if isinstance(step, int):
            padding = first if position == 0 else 1
            # Instance norm of a single value per channel would be zero.
            layers += [nn.Conv2d(channels, step * width, 3, padding=padding)]
            layers += [*(_norm(norm, step * width) if side > 1 or norm != "instance" else []), nn.ReLU()]
            channels = step * width
        elif side > 1:
            layers += [nn.MaxPool2d(2)]
            side //= 2
    return SmallNetwork(nn.Sequential(*layers), image_shape, _linear(num_classes))


class _Residual(nn.Module):
    """Two convolutions and a shortcut; halves by stride, or by average pooling (``pool``)."""

    def __init__(self, channels: int, out: int, halve: bool, norm: str, pool: bool) -> None:
        super().__init__()
        stride = 2 if halve and not pool else 1
        pooling = [nn.AvgPool2d(2)] if halve and pool else []
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            *_norm(norm, out),
            nn.ReLU(),
            *pooling,
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            *_norm(norm, out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if halve or channels != out:
            self.shortcut = nn.Sequential(*pooling, nn.Conv2d(channels, out, 1, stride, bias=False), *_norm(norm, out))
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.activation(self.branch(images) + self.shortcut(images))


def resnet18(
    image_shape: Sequence[int], num_classes: int, *, norm: str = "instance", width: int = 64, pool: bool = False
) -> nn.Module:
    """ResNet-18 for small images [DC code]; ``pool`` is its ``_AP`` form, which halves by average pooling."""
    _at_least("resnet18", image_shape, 8)
    layers: list[nn.Module] = [nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False), *_norm(norm, width)]
    layers += [nn.ReLU()]
    channels, side = width, min(image_shape[1:])
    for stage in range(4):
        # A map of one pixel has no spread: an instance norm would make it zero.
        halve = stage > 0 and side >= 4
        side = (side + 1) // 2 if halve else side
        for block in range(2):
            layers += [_Residual(channels, width * 2**stage, halve and block == 0, norm, pool)]
            channels = width * 2**stage
    return SmallNetwork(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), image_shape, _linear(num_classes))


def _at_least(name: str, image_shape: Sequence[int], side: int) -> None:
    if min(image_shape[1:]) < side:
        raise UserError(f"{name} takes images of at least {side} x {side}; these are {tuple(image_shape[1:])}")


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "convnet_baadd": convnet_baadd,
    "alexnet_baadd": alexnet_baadd,
    "mlp": mlp,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
}
