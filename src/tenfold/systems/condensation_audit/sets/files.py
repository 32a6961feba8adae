"""Condensed sets on disk: safetensors and a manifest that names every byte; no pickle, nothing executed.


    NAME.cset/
      data.safetensors   images, labels; learning_rates, steps, zca_*, initial.* where the set has them
      manifest.json      where it comes from and how to use it, the hash of every file and tensor, and its own
      preview.png        the first images of each class, for the eye

or one file NAME.safetensors, with the manifest in its metadata. The manifest's own hash is the SHA-256 of its canonical
JSON (sorted keys, UTF-8, no spaces) without that hash. It stands for the whole set: publish it and give it to
`load_set` as ``expect``. It shows damage, not authorship; for that, sign the manifest with a tool for detached
signatures, such as ``sigstore sign NAME.cset/manifest.json``, whose file may lie in the folder.
"""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.condensation_audit.networks.small_networks import NETWORKS
from tenfold.systems.condensation_audit.sets.condensed_set import CondensedSet
from tenfold.systems.condensation_audit.sets.manifest import (
    SetManifest,
    assemble,
    describe,
    parse_manifest,
    pixel_statistics,
    seal,
)
from tenfold.systems.condensation_audit.sets.strict_reading import (
    TensorEntry,
    canonical_json,
    is_plain_name,
    read_plain_file,
    read_safetensors,
)

DATA, MANIFEST, PREVIEW = "data.safetensors", "manifest.json", "preview.png"
_METADATA_KEY = "tenfold-condensed-set"
_LARGEST_MANIFEST = 64 * 2**20
_SIGNATURE_ENDINGS = (".sigstore", ".sigstore.json", ".sig", ".asc")


# --- writing ----------------------------------------------------------------------------------------------------


def save_set(path: str | Path, cset: CondensedSet, *, overwrite: bool = False, preview: bool = True) -> str:
    """Write a condensed set, whole or not at all. A poisoned set keeps its mark: there is no way to leave it out.

    Args:
        path: a folder, by custom named ``NAME.cset``; or one file, where it ends in ``.safetensors``.
        cset: the set.
        overwrite: replace what is there.
        preview: put a picture into the folder.

    Returns:
        The set's hash: that of its manifest.

    Raises:
        UserError: there is something already, the place cannot be written, or the set holds what JSON cannot.
    """
    path = Path(path)
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UserError(f"{path} already exists; name another place, or allow it to be replaced")
    tensors = _tensors_of(cset)
    data = save(tensors)
    _, entries, _ = read_safetensors(data, "the set")  # what could not be read is not written
    described = describe(cset, entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    if path.suffix == ".safetensors":
        manifest = seal(described | {"files": []})
        text = canonical_json(manifest).decode()
        write_atomically(path, save(tensors, metadata={_METADATA_KEY: text}))
        return manifest["sha256"]
    contents = {DATA: data}
    if preview:
        contents[PREVIEW] = _preview(cset)
    files = [
        {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
    manifest = seal(described | {"files": files})
    contents[MANIFEST] = (json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    write_folder(path, contents)
    return manifest["sha256"]


def _tensors_of(cset: CondensedSet) -> dict[str, Tensor]:
    found: dict[str, Tensor | None] = {
        "images": cset.images,
        "labels": cset.labels,
        "learning_rates": cset.learning_rates,
        "steps": cset.steps,
    }
    if cset.preprocessing.zca is not None:
        zca = cset.preprocessing.zca
        found |= {"zca_mean": zca.mean, "zca_matrix": zca.matrix, "zca_inverse": zca.inverse}
    found |= {f"initial.{name}": value for name, value in (cset.initial or {}).items()}
    return {name: value.detach().cpu().clone().contiguous() for name, value in found.items() if value is not None}


def _preview(cset: CondensedSet, classes: int = 20, each: int = 10) -> bytes:
    from tenfold.report.pictures import image_grid

    places = [(cset.hard_labels == label).nonzero().flatten()[:each] for label in range(len(cset.classes))]
    shown = [(name, found) for name, found in zip(cset.classes, places, strict=True) if len(found)][:classes]
    columns = max(len(found) for _, found in shown)
    rows = torch.ones(len(shown), columns, *cset.preprocessing.image_shape)  # what is missing stays white
    pixels = cset.pixels
    for row, (_, found) in zip(rows, shown, strict=True):
        row[: len(found)] = pixels[found]
    return image_grid(rows.flatten(0, 1), columns=columns, row_names=[name for name, _ in shown])


def write_folder(path: Path, contents: dict[str, bytes]) -> None:
    """Write a folder of files whole or not at all: under a temporary name, then renamed; what was there is replaced.

    Args:
        path: the folder.
        contents: the files by their names, which may lie in folders of one level.

    Raises:
        UserError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        for name, content in contents.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            old.rename(path)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------


def load_set(
    path: str | Path, *, allow_poisoned: bool = False, expect: str | None = None, allow_network: str | None = None
) -> CondensedSet:
    """Read a condensed set after checking all of it.

    Args:
        path: the folder or file.
        allow_poisoned: read a set that is marked as poisoned.
        expect: the set's hash, where its maker published it.
        allow_network: must repeat the network of the set's recipe (of ``factory``, the function) where it is not one of
            this library's: to make such a network runs code that the manifest chose.

    Raises:
        UserError: it is no set or was changed, cut short or damaged; it is another than expected; it is a pickle; or it
            is marked as poisoned, or names a network of others, and that was not allowed.
    """
    cset, _ = _read(Path(path), expect)
    foreign = _foreign_network(cset)
    if foreign and foreign != allow_network:
        raise UserError(
            f"the recipe of {path} makes its network with {foreign!r}, which is not this library's: allow it with "
            "allow_network if you know it"
        )
    if cset.poisoned is not None and not allow_poisoned:
        raise UserError(
            f"{path} is marked as poisoned (attack {cset.poisoned.get('attack', 'unknown')!r}): networks trained on it "
            "carry a backdoor; allow it with allow_poisoned if that is what you study"
        )
    return cset


def _foreign_network(cset: CondensedSet) -> str:
    """The network of the recipe where it is not one of this library's."""
    if cset.recipe.network in NETWORKS:
        return ""
    return str(cset.recipe.arguments.get("factory", cset.recipe.network))


def verify_set(path: str | Path, *, expect: str | None = None) -> dict[str, Any]:
    """Check a set's files, hashes, tensors and description, and say what it is.

    Args:
        path: the folder or file.
        expect: the set's hash, where its maker published it.

    Returns:
        ``hash``, ``created``, ``method``, ``images``, ``classes``, ``image_shape``, ``labels``, ``source``,
        ``results``, ``pixels`` (statistics), ``poisoned``, ``signatures`` and ``unlisted`` (files of the folder), and
        ``warnings``. The signatures are named, not checked.

    Raises:
        UserError: anything that `load_set` refuses, the mark of a poisoned set excepted.
    """
    path = Path(path)
    cset, manifest = _read(path, expect)
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in listed) if path.is_dir() else []
    signatures = [name for name in others if name.endswith(_SIGNATURE_ENDINGS)]
    unlisted = [name for name in others if name not in signatures]
    warnings = []
    if unlisted:
        warnings.append(f"files that the manifest does not name: {', '.join(unlisted)}")
    if cset.poisoned is not None:
        warnings.append(f"marked as poisoned: attack {cset.poisoned.get('attack', 'unknown')!r}")
    if _foreign_network(cset):
        warnings.append(f"its recipe makes its network with {_foreign_network(cset)!r}, which is not this library's")
    if not cset.source.get("files"):
        warnings.append("the manifest does not name the files that the set was made from")
    return {
        "hash": manifest.sha256,
        "created": manifest.created,
        "method": cset.method,
        "images": len(cset),
        "classes": len(cset.classes),
        "image_shape": list(cset.preprocessing.image_shape),
        "labels": "hard" if cset.labels.ndim == 1 else "soft",
        "source": cset.source.get("name"),
        "results": cset.results,
        "pixels": pixel_statistics(cset),
        "poisoned": cset.poisoned,
        "signatures": signatures,
        "unlisted": unlisted,
        "warnings": warnings,
    }


def _read(path: Path, expect: str | None) -> tuple[CondensedSet, SetManifest]:
    if path.is_dir():
        manifest = parse_manifest(read_plain_file(path / MANIFEST, largest=_LARGEST_MANIFEST), path / MANIFEST, expect)
        content = _checked_files(path, manifest)
        tensors, entries, _ = read_safetensors(content, path / DATA)
    else:
        content = read_plain_file(path.resolve())  # the user's own link to a file is no trick of the file's
        tensors, entries, metadata = read_safetensors(content, path)
        if _METADATA_KEY not in metadata:
            raise UserError(
                f"{path} holds tensors, but no manifest of a condensed set: it does not say how to use them"
            )
        manifest = parse_manifest(metadata[_METADATA_KEY].encode(errors="replace"), f"the manifest of {path}", expect)
    _check_tensors(manifest, entries, path)
    try:
        return assemble(manifest, tensors), manifest
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no valid set: {error}") from error


def _checked_files(folder: Path, manifest: SetManifest) -> bytes:
    """The data file's bytes, after the sizes and then the hashes of all files were checked."""
    names = [entry.path for entry in manifest.files]
    for name in names:
        if not is_plain_name(name):
            raise UserError(f"{folder / MANIFEST} names a file outside its folder: {name[:60]!r}")
    if names.count(DATA) != 1 or len(set(names)) != len(names):
        raise UserError(f"{folder / MANIFEST} does not name {DATA} once, and every other file once")
    content = b""
    for entry in manifest.files:
        path = folder / entry.path
        found = read_plain_file(path, largest=entry.bytes)
        if len(found) != entry.bytes:
            raise UserError(f"{path} has {len(found):,} bytes, not {entry.bytes:,}: it was cut short")
        if hashlib.sha256(found).hexdigest() != entry.sha256:
            raise UserError(f"{path} was changed: it does not have the hash that {MANIFEST} names")
        content = found if entry.path == DATA else content
    return content


def _check_tensors(manifest: SetManifest, entries: dict[str, TensorEntry], path: Path) -> None:
    described = {line.name: TensorEntry(line.dtype, tuple(line.shape), line.sha256) for line in manifest.tensors}
    if len(described) != len(manifest.tensors):
        raise UserError(f"{path}: its manifest names a tensor twice")
    known = {"images", "labels", "learning_rates", "steps", "zca_mean", "zca_matrix", "zca_inverse"}
    for name in sorted({*described, *entries}):
        if described.get(name) != entries.get(name):
            raise UserError(f"{path}: the tensor {name[:60]!r} is not the one that its manifest describes")
        if name not in known and not name.startswith("initial."):
            raise UserError(f"{path} holds a tensor {name[:60]!r}, which no condensed set has")
    for name in ("images", "labels"):
        if name not in described:
            raise UserError(f"{path} holds no tensor {name!r}")
