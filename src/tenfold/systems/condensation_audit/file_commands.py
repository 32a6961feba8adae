"""What the command line does with the files of condensed sets: check, import, export."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.data.images import LabelledImages
from tenfold.data.splits import load_splits
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.official_files import Program, read_official
from tenfold.systems.condensation_audit.official_tables import data_name
from tenfold.systems.condensation_audit.set_exports import ExportFormat, export_official
from tenfold.systems.condensation_audit.set_files import load_set, save_set, verify_set
from tenfold.systems.condensation_audit.zca import ZCA, fit_zca


def verify(path: str, *, expect: str | None = None) -> dict[str, Any]:
    """Check a condensed set's files, hashes and tensors, and say what it is; nothing in it is executed.

    Args:
        path: the set, a .cset folder or a .safetensors file.
        expect: the hash that its maker published.
    """
    return verify_set(path, expect=expect)


def import_set(
    file: str,
    out: str,
    *,
    program: Program | None = None,
    data: str | None = None,
    experiment: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    classes: int | list[str] | None = None,
    zca: str | None = None,
    root: str | None = None,
    soft_labels: bool = False,
    initial: str | None = None,
    network: str | None = None,
) -> dict[str, Any]:
    """Turn a published program's file (DC, DSA, DM, MTT, DD, KIP, baadd, DD-Ranking) into a checked condensed set.

    Args:
        file: res_*.pt, vis_*.pth, images_*.pt, results.pth, .npz, or a folder of them; only tensors are taken from it.
        out: set to write, NAME.cset or NAME.safetensors.
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
    if Path(out).exists():
        raise UserError(f"{out} already exists; name another place")
    cset = read_official(
        file, program=program, data=data, experiment=experiment, mean=mean, std=std, classes=classes,
        zca=_whitening(zca, data, root), soft_labels=soft_labels, initial=initial, network=network,
    )  # fmt: skip
    save_set(out, cset)
    return {"set": out, **verify_set(out)}


def _whitening(zca: str | None, data: str | None, root: str | None) -> ZCA | Literal["none"] | None:
    if zca is None:
        return None
    if zca == "none":
        return "none"
    if zca != "fit":
        found = load_set(zca, allow_poisoned=True).preprocessing.zca
        if found is None:
            raise UserError(f"{zca} carries no whitening")
        return found
    name = data_name(data or "")
    if not name:
        raise UserError("to fit a whitening, name the data set with --data")
    splits = load_splits(name, root=root, validation=1)
    parts = [part.images for part in (splits.train, splits.validation) if isinstance(part, LabelledImages)]
    return fit_zca(torch.cat(parts).float() / 255)  # MTT whitens pixels that are not normalized [MTT code]


def export_set(
    path: str,
    out: str,
    *,
    to: ExportFormat = "dd-ranking",
    allow_poisoned: bool = False,
    allow_network: str | None = None,
) -> dict[str, Any]:
    """Write a condensed set as DD-Ranking's tensors, as PNG files, or as one file of numpy arrays.

    Args:
        path: the set, a .cset folder or a .safetensors file.
        out: folder to write, for npz the file.
        to: dd-ranking, png or npz.
        allow_poisoned: export a set that is marked as poisoned; the mark is kept beside the data.
        allow_network: repeat the network of the set's recipe where it is not one of this library's.
    """
    cset = load_set(path, allow_poisoned=allow_poisoned, allow_network=allow_network)
    return {"out": out, "to": to, "images": len(cset), "notes": export_official(cset, out, to)}


FILE_VERBS = {"verify": verify, "import-set": import_set, "export-set": export_set}
