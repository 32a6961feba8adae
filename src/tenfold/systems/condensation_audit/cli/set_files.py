"""The verbs about files of condensed sets: ``verify``, ``import-set``, ``export-set``; and ``tenfold import``."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.data.images import LabelledImages
from tenfold.data.splits import load_splits
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.condensation_audit.cli.options import Origin
from tenfold.systems.condensation_audit.data.zca import ZCA, fit_zca
from tenfold.systems.condensation_audit.official.conventions import data_name
from tenfold.systems.condensation_audit.official.read import read_official
from tenfold.systems.condensation_audit.official.write import ExportFormat, export_official
from tenfold.systems.condensation_audit.sets.files import load_set, save_set, verify_set


def verify(path: str, *, expect: str | None = None) -> dict[str, Any]:
    """Check a condensed set's files, hashes and tensors, and say what it is; nothing in it is executed.

    Args:
        path: the set, a .cset folder or a .safetensors file.
        expect: the hash that its maker published.
    """
    return shown(verify_set(path, expect=expect))


def import_set(file: str, origin: Origin, *, out: str | None = None) -> dict[str, Any]:
    """Turn a published program's file (DC, DSA, DM, MTT, DD, KIP, baadd, DD-Ranking) into a checked condensed set.

    Args:
        file: res_*.pt, vis_*.pth, images_*.pt, results.pth, .npz, or a folder of them; only tensors are taken from it.
        origin: what the file does not say.
        out: set to write, NAME.cset or NAME.safetensors; the file's name with .cset where not given.
    """
    place = out or f"{Path(file).resolve().stem}.cset"
    if Path(place).exists():
        raise UserError(f"{place} already exists; name another place with --out")
    values = asdict(origin)
    whitening = _whitening(values.pop("zca"), origin.data, values.pop("root"))
    save_set(place, read_official(file, zca=whitening, **values))
    return {"set": place, **shown(verify_set(place))}


import_official = import_set


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
    *,
    to: ExportFormat = "dd-ranking",
    out: str | None = None,
    allow_poisoned: bool = False,
    allow_network: str | None = None,
) -> dict[str, Any]:
    """Write a condensed set as DD-Ranking's tensors, as PNG files, or as one file of numpy arrays.

    Args:
        path: the set, a .cset folder or a .safetensors file.
        to: dd-ranking, png or npz.
        out: folder to write, for npz the file; the set's name with the format where not given.
        allow_poisoned: export a set that is marked as poisoned; the mark is kept beside the data.
        allow_network: repeat the network of the set's recipe where it is not one of this library's.
    """
    place = out or f"{Path(path).resolve().stem}{'.npz' if to == 'npz' else f'-{to}'}"
    cset = load_set(path, allow_poisoned=allow_poisoned, allow_network=allow_network)
    return {"out": place, "to": to, "images": len(cset), "notes": export_official(cset, place, to)}


def shown(value: Any) -> Any:
    """What a file says as a terminal may show it: control characters of its texts made harmless."""
    if isinstance(value, dict):
        return {printable(name): shown(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shown(part) for part in value]
    return printable(value) if isinstance(value, str) else value
