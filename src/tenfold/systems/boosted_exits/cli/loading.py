"""The network of a run or model folder, rebuilt."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tenfold.data import Preprocessing, Splits, load_splits
from tenfold.data.options import FILE_SETS, ImageOptions
from tenfold.errors import UserError
from tenfold.export import Manifest, load_manifest, load_weights
from tenfold.run import read_config
from tenfold.systems.boosted_exits.builders import ExitNetwork, build_network
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy


def load_network(folder: str | Path, factory: str | None = None) -> tuple[ExitNetwork, Manifest]:
    """Rebuild the network of a run or model folder, in eval mode.

    Args:
        folder: holds ``model.safetensors`` and ``model.json``.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, the weights are damaged or do not fit.
    """
    manifest = load_manifest(folder)
    if manifest.system != "boosted-exits":
        raise UserError(f"{folder} holds a model of {manifest.system!r}, not of boosted-exits")
    if manifest.builder == "factory" and factory != manifest.arguments.get("factory"):
        raise UserError(
            f"the network of {folder} is made by {manifest.arguments.get('factory')!r}: allow it with --factory"
        )
    network = build_network(manifest.builder, **manifest.arguments)
    load_weights(network, folder)
    return network.eval(), manifest


def policy_of(manifest: Manifest, run: str) -> ExitPolicy:
    """The exit policy that a model was delivered with, or a ``UserError`` where it has none yet."""
    if not manifest.extra.get("policy"):
        raise UserError(
            f"{run} has no thresholds yet: solve them with tenfold boosted-exits thresholds RUN --save true"
        )
    return ExitPolicy.from_dict(manifest.extra["policy"])


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """What images go through into the network; a ``UserError`` where the model was saved without."""
    if "preprocessing" not in manifest.extra:
        raise UserError("this model was saved by an early version, without its preprocessing: train or import it again")
    return Preprocessing.from_dict(manifest.extra["preprocessing"])


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
    saved: dict[str, Any] = dict(read_config(run)["data"]) if (Path(run) / "config.yaml").exists() else {}
    if data is None and not saved:
        raise UserError(f"{run} names no data: name them with --data (and --root)")
    if data is not None and data != saved.get("name"):
        saved = {"name": data, "root": root}
    saved |= {"root": root} if root is not None else {}
    saved |= {"unreadable": unreadable} if unreadable != "refuse" else {}
    try:
        options = ImageOptions(**saved)
    except TypeError as error:
        raise UserError(f"the settings of the data in {run} are not those of this version: {error}") from error
    options.check()
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
    return ", ".join(classes[:6]) + (f" ... ({len(classes)})" if len(classes) > 6 else "")
