"""The networks of runs and model folders, with what their images go through."""

from typing import Any

from tenfold.data import Preprocessing
from tenfold.errors import UserError
from tenfold.export import Manifest, load_manifest
from tenfold.systems.relation_distillation.vit.build import load_model_folder
from tenfold.systems.relation_distillation.vit.teachers import statistics_of


def load_classifier(folder: str) -> tuple[Any, Manifest]:
    """The fine-tuned network of a folder, with its manifest.

    Raises:
        UserError: the folder holds none.
    """
    model, manifest = load_model_folder(folder), load_manifest(folder)
    classes = manifest.extra.get("classes")
    if not manifest.arguments.get("num_classes"):
        raise UserError(f"{folder} holds a pre-trained network without classes: fine-tune it first")
    if not isinstance(classes, list) or len(classes) != manifest.arguments["num_classes"]:
        raise UserError(f"the manifest of {folder} does not name the classes of its network")
    return model, manifest


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """What a model's images go through; where its manifest has statistics alone, ImageNet's evaluation around them.

    Raises:
        UserError: the manifest's values are damaged, or do not give the images that the network takes.
    """
    size, channels = manifest.arguments["image_size"], manifest.arguments["channels"]
    if "preprocessing" in manifest.extra:
        found = Preprocessing.from_dict(manifest.extra["preprocessing"])
    elif channels == 3:
        found = Preprocessing.cropped(size, *statistics_of(manifest.extra), interpolation="bicubic")
    else:
        found = Preprocessing.squeezed((channels, size, size), *statistics_of(manifest.extra))
    if found.image_shape != (channels, size, size):
        raise UserError(f"the model's preprocessing gives images {found.image_shape}, not {(channels, size, size)}")
    return found
