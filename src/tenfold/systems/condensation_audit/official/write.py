"""Condensed sets in the formats of others, which carry no manifest: the mark of a poisoned set goes beside the data."""

import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.condensation_audit.official.conventions import STATISTICS, data_name
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.files import write_folder

ExportFormat = Literal["dd-ranking", "png", "npz"]
MARK = "POISONED.json"


def export_official(cset: CondensedSet, out: str | Path, to: ExportFormat) -> list[str]:
    """Write a set as others read it.

    Args:
        cset: the set.
        out: what to write; must not exist. ``dd-ranking``: a folder of ``images.pt``, ``labels.pt`` and, where the set
            has one learned rate, ``lr.pt``; ``png``: a folder with one folder of 8-bit images per class; ``npz``: one
            file of arrays, with mean, deviation, whitening, rates and steps.
        to: the format.

    Returns:
        What is lost or must be known, a line each.

    Raises:
        UserError: the place is taken or cannot be written, or the format cannot hold the set.
    """
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} already exists; name another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    if to == "npz":
        write_atomically(out, _npz(cset))
        return []
    contents, notes = _dd_ranking(cset) if to == "dd-ranking" else _png(cset)
    if cset.poisoned is not None:
        contents[MARK] = (json.dumps(cset.poisoned, indent=1, ensure_ascii=False) + "\n").encode()
        notes.append(f"the set is poisoned: {MARK} says how; the format itself has no mark")
    write_folder(out, contents)
    return notes


def _saved(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def _dd_ranking(cset: CondensedSet) -> tuple[dict[str, bytes], list[str]]:
    if cset.steps is not None:
        raise UserError(
            "the set is a sequence of steps with a rate each; DD-Ranking shuffles images, which makes it another set"
        )
    contents = {"images.pt": _saved(cset.images), "labels.pt": _saved(cset.labels)}
    notes = []
    if cset.learning_rates is not None and cset.learning_rates.numel() == 1:
        contents["lr.pt"] = _saved(cset.learning_rates.reshape(()))
    elif cset.learning_rates is not None:
        notes.append("lr.pt is left out: the set has a rate for each step")
    own = (cset.preprocessing.mean, cset.preprocessing.std)
    known = STATISTICS["dd-ranking"].get(data_name(str(cset.source.get("name", ""))))
    if cset.preprocessing.zca is not None:
        notes.append("the images are whitened: evaluate them with use_zca")
    elif known != own:
        notes.append(
            f"the images are normalized with mean {own[0]} and deviation {own[1]}: the test images must be, too"
        )
    return contents, notes


def _png(cset: CondensedSet) -> tuple[dict[str, bytes], list[str]]:
    from PIL import Image

    pixels = cset.pixels
    if pixels.shape[1] not in (1, 3):
        raise UserError(f"images of {pixels.shape[1]} channels cannot be written as PNG; they need 1 or 3")
    outside = float(((pixels < 0) | (pixels > 1)).double().mean())
    whole = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    contents: dict[str, bytes] = {}
    counts = [0] * len(cset.classes)
    for image, label in zip(whole, cset.hard_labels.tolist(), strict=True):
        content = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(content, "PNG")
        name = re.sub(r"\W+", "_", cset.classes[label])[:40]
        contents[f"{label:04d}_{name}/{counts[label]:05d}.png"] = content.getvalue()
        counts[label] += 1
    notes = ["an 8-bit file holds pixels from 0 to 1 only: the images are rounded"]
    if outside:
        notes[0] += f", and {100 * outside:.1f} % of their pixels are clamped; networks trained on them are others"
    if cset.labels.ndim == 2:
        notes.append("soft labels became their most probable class")
    if cset.learning_rates is not None or cset.steps is not None:
        notes.append("learned rates and steps are left out")
    return contents, notes


def _npz(cset: CondensedSet) -> bytes:
    arrays: dict[str, Any] = {
        "images": cset.images.numpy(),
        "labels": cset.labels.numpy(),
        "mean": np.array(cset.preprocessing.mean),
        "std": np.array(cset.preprocessing.std),
        "classes": np.array(cset.classes),
    }
    zca = cset.preprocessing.zca
    if zca is not None:
        arrays |= {"zca_mean": zca.mean.numpy(), "zca_matrix": zca.matrix.numpy(), "zca_inverse": zca.inverse.numpy()}
    for name in ("learning_rates", "steps"):
        if getattr(cset, name) is not None:
            arrays[name] = getattr(cset, name).numpy()
    if cset.poisoned is not None:
        arrays["poisoned"] = np.array(json.dumps(cset.poisoned))
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
