"""Labelling as a job: it resumes, and any number of processes share it.

Rows are cut into blocks of batches; block b belongs to rank b mod w and is one file, written whole or not at all. A
job that was killed, or starts again with another number of processes, makes the blocks that are missing. Masks depend
on the number of the batch, so that the labels are those of one process. Nothing is exchanged between processes: start
them by torchrun, SLURM, or one after the other; the labels are merged by id when they are read.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tenfold.errors import UserError
from tenfold.parallel import rank
from tenfold.run import read_json, write_atomically
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels, label_batches, merge_labels
from tenfold.systems.activation_uncertainty.labels.targets import Target
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.fingerprint import fingerprint

MANIFEST = "labels.json"
_TENSORS = ("ids", "output", "mean", "spread", "features")


def _processes() -> int:
    """Number of processes that share the job, as torchrun and SLURM say."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


def label_to_folder(
    learner: ActivationUncertainty,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    passes: int | None = None,
    seed: int | None = None,
    block: int = 16,
    progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> Path:
    """Label rows into a folder; what is there already is not made again.

    Args:
        learner: knows the main model, its dropout, target and taps.
        batches: inputs, or ``(inputs, ids)``; the same in every process and every time.
        folder: made if need be.
        passes: T; the learner's where ``None``.
        seed: of the masks; the learner's where ``None``.
        block: batches in a file.
        progress: called with the number of rows that are labelled.
        options: of ``label_batches``.

    Raises:
        UserError: the folder holds labels of another model or other settings, or cannot be written.
    """
    folder = Path(folder)
    passes, seed = passes or learner.passes, learner.seed if seed is None else seed
    description = {
        "format": "tenfold-labels-1",
        "target": learner.target.name,
        "passes": passes,
        "seed": seed,
        "block": block,
        "per_sample": bool(options.get("per_sample", False)),
        "dropout": [[site.path, site.kind, site.rate] for site in learner.dropout.sites],
        "features": learner.features.to_dict(),
        "model": fingerprint(learner.model, learner.example, learner.output)["values"],
    }
    _claim_folder(folder, description)
    here, everywhere = rank(), _processes()

    def wanted(number: int) -> bool:
        own = number // block
        return own % everywhere == here and not _block_file(folder, own).exists()

    total = 0

    def counted() -> Iterable[Any]:
        nonlocal total
        for batch in batches:
            total += 1
            yield batch

    pending: list[DropoutLabels] = []
    current, done = -1, 0
    for number, labels in label_batches(
        learner.model,
        counted(),
        learner.dropout,
        learner.target,
        passes=passes,
        seed=seed,
        features=learner.features,
        output=learner.output,
        wanted=wanted,
        **options,
    ):
        if pending and number // block != current:
            _write_block(folder, current, pending)
            pending = []
        current = number // block
        pending.append(labels)
        done += len(labels)
        progress(done)
    if pending:
        _write_block(folder, current, pending)
    if here == 0:
        blocks = -(-total // block)
        write_atomically(folder / MANIFEST, json.dumps({**description, "blocks": blocks}, indent=1) + "\n")
    return folder


def _claim_folder(folder: Path, description: dict[str, Any]) -> None:
    """Make the folder, or refuse one with other labels in it."""
    manifest = folder / MANIFEST
    if manifest.exists():
        found = read_json(manifest)
        for name, value in description.items():
            if found.get(name) != json.loads(json.dumps(value)):
                raise UserError(f"{folder} holds labels with another {name}; name another folder")
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(entry.suffix != ".safetensors" for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no labels; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if rank() == 0:
        write_atomically(manifest, json.dumps(description, indent=1) + "\n")


def _block_file(folder: Path, block: int) -> Path:
    return folder / f"block-{block:06d}.safetensors"


def _write_block(folder: Path, block: int, parts: list[DropoutLabels]) -> None:
    merged = merge_labels(parts)
    tensors = {name: value.contiguous() for name in _TENSORS if (value := getattr(merged, name)) is not None}
    write_atomically(_block_file(folder, block), save(tensors))


def read_labels(folder: str | Path) -> DropoutLabels:
    """All labels of a finished job, by rising id.

    Args:
        folder: see ``label_to_folder``.

    Raises:
        UserError: the job is not finished, a file is damaged, or an id comes twice.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != "tenfold-labels-1":
        raise UserError(f"{folder / MANIFEST} does not describe labels")
    if "blocks" not in manifest:
        raise UserError(f"the labels in {folder} are not finished; start the same job again")
    missing = [n for n in range(manifest["blocks"]) if not _block_file(folder, n).exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {manifest['blocks']} blocks of labels are missing in {folder}; start the same job "
            "again, in all its processes"
        )
    target = Target(manifest["target"])
    parts = []
    for number in range(manifest["blocks"]):
        path = _block_file(folder, number)
        try:
            tensors: dict[str, Tensor] = load_file(path)
            known: dict[str, Any] = {name: tensors[name] for name in _TENSORS if name in tensors}
            parts.append(DropoutLabels(**known, passes=manifest["passes"], target=target))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete it and start the same job again") from error
    merged = merge_labels(parts)
    order = merged.ids.argsort(stable=True)
    merged = merged.subset(order)
    repeated = merged.ids[1:][merged.ids[1:] == merged.ids[:-1]]
    if len(repeated) and manifest["features"]["pool"] != "tokens":  # tokens share their input's id
        raise UserError(f"id {int(repeated[0])} comes twice in the labels of {folder}; give each row an id of its own")
    return merged
