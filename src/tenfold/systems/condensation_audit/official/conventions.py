"""What the published programs do not write into their files: how images were normalized, and the names of classes.

The programs disagree: dataset distillation has other deviations than gradient matching, and trajectory matching
normalizes CIFAR-100 with the numbers of CIFAR-10 and, where it whitens, not at all [DC, DD, MTT code].
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.data.formats.cifar import CIFAR10_CLASSES
from tenfold.data.formats.idx import FASHION_CLASSES
from tenfold.data.formats.stl10 import STL10_CLASSES
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.load import STATISTICS as PUBLISHED_STATISTICS

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_DIGITS = tuple("0123456789")
CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "fashion-mnist": FASHION_CLASSES,
    "svhn": _DIGITS,
    "cifar10": CIFAR10_CLASSES,
    "cifar100": tuple(map(str, range(100))),
    "stl10": STL10_CLASSES,
    "tiny-imagenet": tuple(map(str, range(200))),
}
_SPELLINGS = {name.replace("-", ""): name for name in CLASSES} | {"tiny": "tiny-imagenet"}

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD_OF_DC, _CIFAR_STD_OF_DD = (0.2023, 0.1994, 0.2010), (0.247, 0.243, 0.261)
_IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY: dict[str, Statistics] = {"mnist": ((0.1307,), (0.3081,)), "fashion-mnist": ((0.2861,), (0.3530,))}

_OF_DC: dict[str, Statistics] = PUBLISHED_STATISTICS | {"tiny-imagenet": _IMAGENET}
_OF_DD: dict[str, Statistics] = _GREY | {
    "svhn": (
        (0.4379104971885681, 0.44398033618927, 0.4729299545288086),
        (0.19803012907505035, 0.2010156363248825, 0.19703614711761475),
    ),
    "cifar10": (_CIFAR_MEAN, _CIFAR_STD_OF_DD),
    "cifar100": (_CIFAR_MEAN, _CIFAR_STD_OF_DD),
    "stl10": (_CIFAR_MEAN, _CIFAR_STD_OF_DD),
}
_OF_MTT: dict[str, Statistics] = {
    "cifar10": (_CIFAR_MEAN, _CIFAR_STD_OF_DC),
    "cifar100": (_CIFAR_MEAN, _CIFAR_STD_OF_DC),
    "tiny-imagenet": _IMAGENET,
}
STATISTICS = {"dc": _OF_DC, "baadd": _OF_DC, "dd-ranking": _OF_DC, "dd": _OF_DD, "mtt": _OF_MTT, "kip": {}}
"""Mean and deviation by program and data set."""

_NETWORKS = {
    "ConvNet": "convnet",
    "MLP": "mlp",
    "LeNet": "lenet",
    "AlexNet": "alexnet",
    "VGG11": "vgg11",
    "ResNet18": "resnet18",
}


@dataclass(frozen=True)
class Origin:
    """What is known about a file's images beside the file.

    Attributes:
        data: our name of the data set; empty where it is another.
        classes: names of the classes.
        mean: per channel.
        std: per channel.
    """

    data: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def data_name(spelling: str) -> str:
    """Our name of a data set that a program calls ``FashionMNIST``, ``Cifar10`` or the like; empty if unknown."""
    return _SPELLINGS.get("".join(spelling.lower().replace("-", "").replace("_", "").split()), "")


def network_name(program: str, model: str) -> str:
    """Our name of a program's network; its ``ConvNet`` where there is none of ours."""
    ours = _NETWORKS.get(model, "convnet")
    return f"{ours}_baadd" if program in ("baadd", "dd") and ours in ("convnet", "alexnet") else ours


def find_origin(
    program: str,
    data: str | None,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    classes: Sequence[str] | int | None,
    whitened: bool = False,
) -> Origin:
    """The preprocessing of a program's images, from the data set's name or as given.

    Args:
        program: a key of `STATISTICS`.
        data: name of the data set in any spelling; unknown where ``None``.
        mean: given by the user, with ``std``, instead.
        std: likewise.
        classes: names or number, given by the user.
        whitened: whether the images are whitened, which trajectory matching does instead of the normalization.

    Raises:
        UserError: it is not known; the message says what to pass.
    """
    name = data_name(data or "")
    if (mean is None) != (std is None):
        raise UserError("give mean and std together, one number per channel each")
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes or CLASSES.get(name, ()))
    if not names:
        raise UserError(
            f"the file does not name its classes: give data (one of {', '.join(CLASSES)}), or classes, names or number"
        )
    if mean is not None and std is not None:
        return Origin(name or (data or ""), names, tuple(mean), tuple(std))
    known = STATISTICS[program].get(name)
    if known is None:
        choice = f"data (one of {', '.join(STATISTICS[program])}) or " if STATISTICS[program] else ""
        raise UserError(f"the file does not say how its images were normalized: give {choice}mean and std")
    if whitened and program == "mtt":
        return Origin(name, names, (0.0,) * len(known[0]), (1.0,) * len(known[1]))
    return Origin(name, names, *known)
