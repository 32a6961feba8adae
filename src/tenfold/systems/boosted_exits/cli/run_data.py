"""The data that a model is measured on: those of its run, or others, prepared as the model wants them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tenfold.data import Splits, load_splits
from tenfold.data.options import FILE_SETS, ImageOptions
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import Manifest
from tenfold.run import read_config
from tenfold.settings import check_settings
from tenfold.systems.boosted_exits.serving.served_model import preprocessing_of


def data_of(
    manifest: Manifest, run: str, data: str | None, root: str | None, unreadable: Literal["refuse", "leave-out"]
) -> Splits:
    """The data of a run, or others, prepared as the model wants them.

    Args:
        manifest: of the model.
        run: its folder.
        data: name of the data, where not those of the run; of the run's settings none then acts on them.
        root: folder of the data, where not that of the run.
        unreadable: what is done about files that cannot be read.

    Raises:
        UserError: there are no such data, or their images or classes are not the model's.
    """
    config = read_config(run) if (Path(run) / "config.yaml").exists() else {}
    if not isinstance(config.get("data", {}), dict):
        raise UserError(f"{run}/config.yaml is damaged: its data are no settings")
    saved: dict[str, Any] = dict(config.get("data", {}))
    if data is None and not saved:
        raise UserError(f"{run} names no data: name them with --data (and --root)")
    name = data or saved["name"]
    if name != saved.get("name") or root not in (None, saved.get("root")):
        saved = {"name": name, "root": root}
    saved |= {"unreadable": unreadable} if unreadable != "refuse" else {}
    try:
        options = ImageOptions(**saved)
    except TypeError as error:
        raise UserError(f"the settings of the data in {run} are not those of this version: {error}") from error
    check_settings(options)
    splits = load_splits(**asdict(options), options="--")
    preprocessing = preprocessing_of(manifest)
    if options.name in FILE_SETS:
        splits = splits.prepared(preprocessing=preprocessing)
    elif splits.image_shape != preprocessing.image_shape:
        raise UserError(
            f"the network takes images {preprocessing.image_shape}; those of {splits.name} are {splits.image_shape}"
        )
    else:
        splits = splits.prepared(mean=preprocessing.mean, std=preprocessing.std)
    classes = manifest.extra.get("classes")
    if classes is not None and list(splits.classes) != list(classes):
        raise UserError(
            f"the network knows the classes {_listed(classes)}; those of {splits.name} are {_listed(splits.classes)}"
        )
    if len(splits.classes) != manifest.arguments["num_classes"]:
        raise UserError(
            f"the network has {manifest.arguments['num_classes']} classes, {splits.name} has {len(splits.classes)}"
        )
    return splits


def _listed(classes: Sequence[str]) -> str:
    return printable(", ".join(classes[:6])) + (f" ... ({len(classes)})" if len(classes) > 6 else "")
