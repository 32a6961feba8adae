"""The networks of runs and model folders, with what their images go through."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import make_folder, printable
from tenfold.models.folder import Manifest, load_manifest
from tenfold.systems.relation_distillation.vit.build import load_model_folder


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


def new_files(folder: str | Path, *names: str) -> Path:
    """The folder to write files into, made if need be; what is there already is not replaced.

    Raises:
        UserError: one of the files exists, or the folder cannot be made.
    """
    for name in names:
        if (Path(folder) / name).exists():
            raise UserError(f"{printable(folder)} already holds {name}; name another folder with --out")
    return make_folder(folder)
