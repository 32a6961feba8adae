"""Groups of options that several verbs share: the fields of each are options of the verb itself."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

import torch

from tenfold.data.options import FILE_SETS, ImageOptions
from tenfold.data.preprocessing import Preprocessing
from tenfold.errors import UserError
from tenfold.files import first_line
from tenfold.settings import Count, PositiveInt, PositiveShare
from tenfold.systems.condensation_audit.attacks.doorping import Doorping
from tenfold.systems.condensation_audit.attacks.naive_attack import NaiveAttack
from tenfold.systems.condensation_audit.attacks.poisoning import Attack
from tenfold.systems.condensation_audit.condensers.condense import settings_of_method
from tenfold.systems.condensation_audit.data.load import Data, load_data
from tenfold.systems.condensation_audit.names import Method
from tenfold.systems.condensation_audit.official.read import Program
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe
from tenfold.systems.condensation_audit.training.siamese_augmentation import operations_of


@dataclass
class DataChoice:
    """Real images to condense, some of them held out.

    Attributes:
        data: name of the data: digits, fashion-mnist, cifar10, svhn, stl10, folder ...
        root: their folder; TENFOLD_DATA where not given.
        resize: side to which images are brought, squeezed where they are no squares; as they are where not given, but
            those of a folder to 32.
        validation: clean images that are held out of the condensation, for the audit; where not given, as many as is
            usual for the data set, or a tenth.
        unreadable: what is done about files of a folder that cannot be read: refuse names them, leave-out goes on.
    """

    data: str = "digits"
    root: str | None = None
    resize: PositiveInt | None = None
    validation: PositiveInt | None = None
    unreadable: Literal["refuse", "leave-out"] = "refuse"

    def read(self) -> Data:
        """Read and split the data.

        Raises:
            UserError: there are none of this name, or they are missing or damaged.
        """
        return load_data(_image_options(self, self.resize), prefix="--")


@dataclass
class CleanChoice:
    """Clean images of an auditor, of the kind that a set was condensed from.

    Attributes:
        data: name of clean data of the same kind: digits, fashion-mnist, cifar10, folder ...
        root: folder of the data; TENFOLD_DATA where not given.
        validation: clean images that are held out; where not given, as many as is usual for the data set, or a tenth.
        unreadable: what is done about files of a folder that cannot be read: refuse names them, leave-out goes on.
    """

    data: str | None = None
    root: str | None = None
    validation: PositiveInt | None = None
    unreadable: Literal["refuse", "leave-out"] = "refuse"

    def read(self, image_shape: Sequence[int], reading: dict[str, Any] | None = None) -> Data:
        """Read the data at the size of what is audited.

        Args:
            image_shape: ``(channels, height, width)``.
            reading: how the images of the set were brought to their size, where it says so.

        Raises:
            UserError: there are no such data, they are missing or damaged, or are images of another shape.
        """
        if self.data is None:
            raise UserError("name the clean data with --data (and --root)")
        _, height, width = image_shape
        options = _image_options(self, height if height == width else None)
        found = load_data(options, reading=_of_files(options, image_shape, reading or {}), prefix="--")
        if list(found.test.image_shape) != list(image_shape):
            raise UserError(
                f"what is audited takes images {tuple(image_shape)}; those of {self.data!r} are "
                f"{found.test.image_shape}"
            )
        return found


def _image_options(choice: DataChoice | CleanChoice, side: int | None) -> ImageOptions:
    known = get_args(get_type_hints(ImageOptions)["name"])
    if choice.data not in known:
        raise UserError(f"there are no data {choice.data!r}; there are: {', '.join(known)}")
    if side is None and choice.data in FILE_SETS:
        side = 32
    return ImageOptions(
        choice.data,  # type: ignore[arg-type]
        choice.root,
        choice.validation,
        resize=side,
        unreadable=choice.unreadable,
    )


def _of_files(options: ImageOptions, image_shape: Sequence[int], reading: dict[str, Any]) -> Preprocessing | None:
    """Files are brought to their size as those of the set were: grey where it is, cut out where it says so."""
    if options.name not in FILE_SETS:
        return None
    channels, height, width = image_shape
    if channels not in (1, 3):
        return None
    plain = Preprocessing.squeezed((channels, height, width))
    if reading.get("resize") != "crop":
        return plain
    try:
        return replace(plain, resize="crop", resize_side=int(reading["resize_side"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the set does not say rightly how its images were read: {reading}") from error


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

    method: Method = "dm"
    images_per_class: PositiveInt = 10
    network: str = "convnet"
    arguments: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None

    def training_recipe(self) -> TrainingRecipe:
        """The recipe that travels with the set.

        Raises:
            UserError: a field that no recipe has, or one out of range.
        """
        known = {field.name for field in fields(TrainingRecipe)} - {"network", "arguments"}
        for name in self.recipe or {}:
            if name not in known:
                raise UserError(f"a training recipe has no {name!r}; it has: {', '.join(sorted(known))}")
        recipe = TrainingRecipe(network=self.network, arguments=self.arguments or {}, **(self.recipe or {}))
        operations_of(recipe.augmentation)
        return recipe

    def check(self) -> None:
        """Refuse settings that the method does not have, before any data are read.

        Raises:
            UserError: names the setting.
        """
        self.training_recipe()
        settings_of_method(self.method, self.settings or {})


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
    portion: PositiveShare = 0.01
    target: Count = 0
    size: PositiveInt = 2
    clamp: Literal["none", "valid", "uint8"] = "uint8"
    attack_settings: dict[str, Any] | None = None

    def make(self) -> Attack:
        """The attack.

        Raises:
            UserError: a setting that it does not have, or one out of range.
        """
        more = self.attack_settings or {}
        if self.attack == "naive" and self.clamp != "uint8":
            raise UserError(f"--clamp {self.clamp} has no effect on the naive attack, whose trigger is an image's")
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


def usable_device(name: str) -> str:
    """A device by its name, if it is there.

    Raises:
        UserError: torch knows no such device, or it is not there.
    """
    try:
        torch.zeros(1, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {first_line(error)}; cpu always can") from error
    return name
