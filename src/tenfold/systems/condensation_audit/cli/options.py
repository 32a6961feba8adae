"""Groups of options that several verbs share: the fields of each are options of the verb itself."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tenfold.data.options import ImageOptions
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.data.load import Data, load_data
from tenfold.systems.condensation_audit.official.read import Program
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe


@dataclass
class DataChoice:
    """Real images to condense, some of them held out.

    Attributes:
        data: name of the data: digits, fashion-mnist, cifar10, svhn, stl10, folder ...
        root: their folder; TENFOLD_DATA where not given.
        resize: side to which images are brought; as they are where not given, but those of a folder to 32.
        validation: clean images that are held out of the condensation, for the audit.
    """

    data: str = "digits"
    root: str | None = None
    resize: int | None = None
    validation: int = 300


@dataclass
class CleanChoice:
    """Clean images that an audit uses.

    Attributes:
        data: name of clean data of the same kind: digits, fashion-mnist, cifar10, folder ...
        root: folder of the data; TENFOLD_DATA where not given.
        validation: clean images that are used, from the validation split.
    """

    data: str | None = None
    root: str | None = None
    validation: int = 600


@dataclass
class Condensing:
    """How a set is condensed, and how networks are trained on it.

    Attributes:
        method: dm, dc, dsa, mtt, dd; random, herding, k-center, k-means, class-means.
        images_per_class: of each class (dd: and of each step).
        network: convnet, mlp, lenet, alexnet, vgg11, resnet18, convnet_baadd, alexnet_baadd, torchvision/NAME,
            timm/NAME, or factory.
        arguments: of the network, such as '{"width": 16, "depth": 2}'.
        settings: of the method, such as '{"iterations": 200}'.
        recipe: how networks are trained on the set, such as '{"epochs": 200}'.
    """

    method: str = "dm"
    images_per_class: int = 10
    network: str = "convnet"
    arguments: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None

    def training_recipe(self) -> TrainingRecipe:
        """The recipe that travels with the set.

        Raises:
            UserError: a field that no recipe has, or one out of range.
        """
        try:
            return TrainingRecipe(network=self.network, arguments=self.arguments or {}, **(self.recipe or {}))
        except TypeError as error:
            raise UserError(f"this is no training recipe: {error}") from error


@dataclass
class AttackChoice:
    """An attack on the condensation.

    Attributes:
        attack: naive (fixed white square) or doorping (the trigger is updated all along).
        portion: share of the images that is poisoned.
        target: class that the trigger gives.
        size: side of the trigger in pixels.
        clamp: of doorping: none as published (leaves the pixel range), valid, or uint8.
        attack_settings: further ones, such as '{"mapping": "all-to-all"}', and of doorping '{"alpha": 5, "topk": 3}'.
    """

    attack: Literal["naive", "doorping"] = "naive"
    portion: float = 0.01
    target: int = 0
    size: int = 2
    clamp: Literal["none", "valid", "uint8"] = "uint8"
    attack_settings: dict[str, Any] | None = None

    def make(self) -> Attack:
        """The attack.

        Raises:
            UserError: a setting that it does not have, or one out of range.
        """
        more = self.attack_settings or {}
        try:
            if self.attack == "naive":
                return NaiveAttack(self.portion, self.target, self.size, **more)
            return Doorping(self.portion, self.target, self.size, **{"clamp": self.clamp, **more})
        except TypeError as error:
            raise UserError(f"the attack's settings cannot be read: {error}") from error


@dataclass
class Origin:
    """What a published file does not say about itself.

    Attributes:
        program: which program wrote it, where name and content do not tell.
        data: data set that was condensed, such as cifar10; decides the normalization where mean and std are not given.
        experiment: which of the file's experiments; the last where not given.
        mean: of pixels in [0, 1], one number per channel.
        std: of pixels in [0, 1], one number per channel.
        classes: names or number of the classes, where the data set is not a known one.
        zca: whitening of the images: none, a set that carries it, or fit (on the training images under root).
        root: folder of the data for --zca fit; TENFOLD_DATA where not given.
        soft_labels: keep KIP's labels as numbers for each class.
        initial: file of the weights that a set of DD was made for.
        network: network that is trained on the set, such as lenet; the program's own where not given.
    """

    program: Program | None = None
    data: str | None = None
    experiment: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: int | list[str] | None = None
    zca: str | None = None
    root: str | None = None
    soft_labels: bool = False
    initial: str | None = None
    network: str | None = None


def read_data(choice: DataChoice) -> Data:
    """Read and split the data that a verb names.

    Raises:
        UserError: there are none of this name, or they are missing or damaged.
    """
    return load_data(image_options(choice.data, choice.root, choice.resize, choice.validation))


def image_options(data: str, root: str | None, side: int | None, validation: int) -> ImageOptions:
    """Settings of the images by name; ``side`` is what files are decoded to, or images in memory are resized to.

    Raises:
        UserError: there are no data of this name.
    """
    known = get_args(ImageOptions.__annotations__["name"])
    if data not in known:
        raise UserError(f"there are no data {data!r}; there are: {', '.join(known)}")
    options: dict[str, Any] = {"name": data, "root": root, "validation": validation}
    if data in ("folder", "imagenet"):
        options["image_size"] = side or 32
    else:
        options["resize"] = side
    return ImageOptions(**options)
