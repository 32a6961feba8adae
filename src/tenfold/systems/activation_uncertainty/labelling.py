"""Labelling as a job: it resumes, and any number of processes share it.

Rows are cut into blocks of batches; block b belongs to rank b mod w and is one file, written whole or not at all. A
job that was killed, or starts again with another number of processes, makes the blocks that are missing or damaged.
Each block knows a hash of the rows that it was made from: a folder with labels of other rows is refused. Masks depend
on the number of the batch, so that the labels are those of one process. Nothing is exchanged between processes: start
them by torchrun, SLURM, or one after the other; the labels are merged by id when they are read.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.activation_uncertainty.labels.passes import DropoutLabels, label_batches, merge_labels
from tenfold.systems.activation_uncertainty.labels.targets import Target, TargetName
from tenfold.systems.activation_uncertainty.method import ActivationUncertainty
from tenfold.systems.activation_uncertainty.network.batches import (
    Batch,
    Ids,
    Parts,
    digest_of_rows,
    order_of_ids,
    read_batches,
)
from tenfold.systems.activation_uncertainty.network.calling import Inputs
from tenfold.systems.activation_uncertainty.network.dropout import DropoutController
from tenfold.systems.activation_uncertainty.network.dropout_sites import DropoutSite
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.network.fingerprint import hash_of_weights
from tenfold.training.parallel import rank

MANIFEST = "labels.json"
_TENSORS = ("output", "mean", "spread", "features")


class LabelsManifest(BaseModel):
    """``labels.json``: how labels were made; ``blocks`` is there when the job is finished.

    Attributes:
        format: version of this layout.
        target: definition of the uncertainty.
        passes: T.
        seed: of the masks.
        block: batches in a file.
        per_sample: whether masks depend on the row's id instead of the batch.
        dropout: places and rates.
        features: what was read, see ``ActivationFeatures.to_dict``.
        model: hash of the main model's weights.
        data: hash of the first batch.
        blocks: number of files.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["tenfold-labels-2"] = "tenfold-labels-2"
    target: TargetName
    passes: Annotated[int, Field(ge=2)]
    seed: int
    block: Annotated[int, Field(ge=1)]
    per_sample: bool
    dropout: list[DropoutSite]
    features: dict[str, Any]
    model: str
    data: str
    blocks: Annotated[int, Field(ge=0)] | None = None


def read_labels_manifest(folder: str | Path) -> LabelsManifest:
    """Read ``labels.json``.

    Raises:
        UserError: the folder holds none, or it does not describe labels.
    """
    path = Path(folder) / MANIFEST
    try:
        return LabelsManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no labels ({MANIFEST}): {error.strerror or error}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not UTF-8 text"
        raise UserError(f"{path} does not describe labels: {reason}") from error


def label_to_folder(
    learner: ActivationUncertainty,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    passes: int | None = None,
    seed: int | None = None,
    block: int = 16,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> Path:
    """Label rows into a folder; what is there already is not made again, if it was made from the same rows.

    Args:
        learner: knows the main model, its dropout, target and taps.
        batches: inputs, or ``Batch``; the same in every process and every time.
        folder: made if need be.
        passes: T; the learner's where ``None``.
        seed: of the masks; the learner's where ``None``.
        block: batches in a file.
        parts: what the parts of a batch are, see ``network.batches``.
        progress: called with the number of rows that are labelled.
        options: of ``label_batches``.

    Raises:
        UserError: the folder holds labels of another model, other rows or other settings, or cannot be written.
    """
    folder = Path(folder)
    if block < 1:
        raise UserError(f"a block holds at least 1 batch; got {block}")
    read = read_batches(batches, learner.features.structure, parts)
    first = next(read, None)
    if first is None:
        raise UserError("there are no rows to label: the data are empty")
    manifest = LabelsManifest(
        target=learner.target.name,
        passes=learner.passes if passes is None else passes,
        seed=learner.seed if seed is None else seed,
        block=block,
        per_sample=bool(options.get("per_sample", False)),
        dropout=list(learner.dropout.sites),
        features=learner.features.to_dict(),
        model=hash_of_weights(learner.model),
        data=digest_of_rows(*first),
    )
    finished = _claim_folder(folder, manifest)
    job = _Job(folder, block, rank(), _processes())
    pending: list[DropoutLabels] = []
    current, done = -1, 0
    for number, labels in label_batches(
        learner.model,
        job.follow(chain([first], read)),
        learner.dropout,
        learner.target,
        passes=manifest.passes,
        seed=manifest.seed,
        features=learner.features,
        output=learner.output,
        wanted=job.wanted,
        **options,
    ):
        if pending and number // block != current:
            job.write(current, pending)
            pending = []
        current = number // block
        pending.append(labels)
        done += len(labels)
        progress(done)
    if pending:
        job.write(current, pending)
    blocks = -(-job.batches // block)
    if finished not in (None, blocks):
        raise UserError(f"{folder} holds labels of other rows, in {finished} blocks instead of {blocks}; {_ELSEWHERE}")
    if job.rank == 0:
        write_atomically(
            folder / MANIFEST, manifest.model_copy(update={"blocks": blocks}).model_dump_json(indent=1) + "\n"
        )
    return folder


_ELSEWHERE = "name another folder"


def _processes() -> int:
    """Number of processes that share the job, as torchrun and SLURM say."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


class _Job:
    """One process's share of the blocks: which of them are there, and from which rows."""

    def __init__(self, folder: Path, block: int, own_rank: int, processes: int) -> None:
        self.folder, self.block, self.rank, self.processes = folder, block, own_rank, processes
        self.batches = 0
        self._rows: dict[int, Any] = {}  # block -> hash of its rows so far
        self._kept: dict[int, str | None] = {}  # block -> hash of the rows that its file was made from

    def _is_own(self, block: int) -> bool:
        return block % self.processes == self.rank

    def follow(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, while their rows are hashed; labels that are kept must be of these rows."""
        filled = (batch for batch in batches if batch.ids is not None and len(batch.ids))
        for number, batch in enumerate(filled):
            block = number // self.block
            if number % self.block == 0:
                self._check(block - 1)
            if self._is_own(block):
                self._rows.setdefault(block, hashlib.sha256()).update(digest_of_rows(*batch).encode())
            self.batches = number + 1
            yield batch
        self._check((self.batches - 1) // self.block)

    def _check(self, block: int) -> None:
        kept = self._kept.get(block)
        if kept is not None and kept != self._rows[block].hexdigest():
            raise UserError(f"{self.folder} holds labels of other rows (block {block}); {_ELSEWHERE}")

    def wanted(self, number: int) -> bool:
        """Whether a batch has to be labelled here."""
        block = number // self.block
        if not self._is_own(block):
            return False
        if block not in self._kept:
            self._kept[block] = _rows_of_block(_block_file(self.folder, block))
        return self._kept[block] is None

    def write(self, block: int, labels: list[DropoutLabels]) -> None:
        """Write the labels of a block, with hashes of its rows and of itself."""
        tensors = _tensors_of(merge_labels(labels))
        facts = {"rows": self._rows[block].hexdigest(), "labels": _digest(tensors)}
        write_atomically(_block_file(self.folder, block), save(tensors, facts))


def _claim_folder(folder: Path, manifest: LabelsManifest) -> int | None:
    """Make the folder, or refuse one with other labels in it; gives the blocks of a finished job."""
    path = folder / MANIFEST
    if path.exists():
        found = read_labels_manifest(folder)
        for name in LabelsManifest.model_fields:
            if name != "blocks" and getattr(found, name) != getattr(manifest, name):
                other = "of other rows" if name == "data" else f"with another {name}"
                raise UserError(f"{folder} holds labels {other}; {_ELSEWHERE}")
        return found.blocks
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(entry.suffix not in (".safetensors", ".tmp") for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no labels; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if rank() == 0:
        write_atomically(path, manifest.model_dump_json(indent=1) + "\n")
    return None


def _block_file(folder: Path, block: int) -> Path:
    return folder / f"block-{block:06d}.safetensors"


def _tensors_of(labels: DropoutLabels) -> dict[str, Tensor]:
    """Labels as a file holds them; texts as bytes and where each ends."""
    tensors = {name: value.contiguous() for name in _TENSORS if (value := getattr(labels, name)) is not None}
    if isinstance(labels.ids, Tensor):
        return {"ids": labels.ids, **tensors}
    texts = [str(name).encode() for name in labels.ids.tolist()]
    ends = np.cumsum([len(text) for text in texts])
    return {
        "id_bytes": torch.from_numpy(np.frombuffer(b"".join(texts), dtype=np.uint8).copy()),
        "id_ends": torch.from_numpy(ends),
        **tensors,
    }


def _ids_of(tensors: dict[str, Tensor]) -> Ids:
    if "ids" in tensors:
        return tensors["ids"]
    content, ends = tensors["id_bytes"].numpy().tobytes(), tensors["id_ends"].tolist()
    starts = [0, *ends[:-1]]
    return np.array([content[a:b].decode() for a, b in zip(starts, ends, strict=True)], dtype=object)


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest_of_rows(dict(sorted(tensors.items())), torch.empty(0))


def _read_block(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts of a block.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if "rows" not in facts or facts.get("labels") != _digest(tensors):
        raise ValueError("its hash differs")
    return tensors, facts


def _rows_of_block(path: Path) -> str | None:
    """Hash of the rows that a block was made from; ``None`` where it is missing or damaged, and to be made (again)."""
    try:
        return _read_block(path)[1]["rows"]
    except (OSError, ValueError):
        return None


def read_labels(folder: str | Path) -> DropoutLabels:
    """All labels of a finished job, by rising id.

    Args:
        folder: see ``label_to_folder``.

    Raises:
        UserError: the job is not finished, a file is damaged, or an id comes twice.
    """
    folder = Path(folder)
    manifest = read_labels_manifest(folder)
    if manifest.blocks is None:
        raise UserError(f"the labels in {folder} are not finished; start the same job again")
    files = sorted(folder.glob("block-*.safetensors"))
    if len(files) > manifest.blocks:
        raise UserError(f"{folder} holds {len(files)} blocks of labels, and not the {manifest.blocks} of {MANIFEST}")
    if missing := manifest.blocks - len(files):
        raise UserError(
            f"{missing} of {manifest.blocks} blocks of labels are missing in {folder}; start the same job again, in "
            "all its processes"
        )
    target = Target(manifest.target)
    blocks = []
    for path in files:
        try:
            tensors, _ = _read_block(path)
            known: dict[str, Any] = {name: tensors[name] for name in _TENSORS if name in tensors}
            blocks.append(DropoutLabels(_ids_of(tensors), **known, passes=manifest.passes, target=target))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: start the same job again, which makes it anew") from error
    merged = merge_labels(blocks)
    merged = merged.subset(order_of_ids(merged.ids))
    same: Any = merged.ids[1:] == merged.ids[:-1]
    if same.any() and manifest.features.get("pool") != "tokens":  # tokens share their input's id
        twice = merged.ids[1:][same][0]
        raise UserError(f"id {twice} comes twice in the labels of {folder}; give each row an id of its own")
    return merged


def learner_of_labels(model: nn.Module, example: Inputs, folder: str | Path) -> ActivationUncertainty:
    """The learner that made labels: the same dropout, target and taps.

    Args:
        model: the main model.
        example: a small batch.
        folder: of the labels.

    Raises:
        UserError: the labels are of another model.
    """
    found = read_labels_manifest(folder)
    if hash_of_weights(model) != found.model:
        raise UserError(f"the labels in {folder} are of another model; label again")
    learner = ActivationUncertainty(
        model,
        example,
        target=found.target,
        passes=found.passes,
        seed=found.seed,
        dropout=DropoutController(model, example, sites=found.dropout),
    )
    learner.features = ActivationFeatures.from_dict(model, found.features)
    return learner
