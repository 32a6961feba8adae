"""What a frozen teacher believes of unobserved queries: the best K candidates of each, kept in memory-mapped files."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import read_json, write_atomically
from tenfold.losses import log_probabilities
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, check_scores
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex
from tenfold.systems.graph_fusion.graph.query_batch import UnobservedBatch
from tenfold.systems.graph_fusion.graph.unobserved_queries import UnobservedQueries
from tenfold.systems.graph_fusion.scale.memory import rows_within
from tenfold.training.parallel import rank, wait_for_all_ranks, world_size

_ARRAYS = ("queries", "cross", "weights", "ids", "probabilities", "tail")


@dataclass(frozen=True)
class TeacherFile:
    """Beliefs on unobserved queries, read from files as they are needed.

    Attributes:
        queries: ``(U, 2)`` int64.
        cross: ``(U,)`` whether the query's relation is new to its entity; else it is a residual query.
        weights: ``(U,)`` float32.
        ids: ``(U, K)`` int32, most probable first.
        probabilities: ``(U, K)`` float16.
        tail: ``(U,)`` float32, probability of all other candidates.
    """

    queries: np.ndarray
    cross: np.ndarray
    weights: np.ndarray
    ids: np.ndarray
    probabilities: np.ndarray
    tail: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)

    def batch(self, rows: Tensor, known: AnswerIndex) -> UnobservedBatch:
        """Rows as tensors, with the known answers that both distributions leave out."""
        place = rows.numpy()
        queries = torch.from_numpy(np.asarray(self.queries[place]))
        owner, answers, _ = known.of(known.find(queries))
        return UnobservedBatch(
            heads=queries[:, 0],
            relations=queries[:, 1],
            owner=owner,
            answers=answers,
            ids=torch.from_numpy(self.ids[place].astype(np.int64)),
            probabilities=torch.from_numpy(self.probabilities[place].astype(np.float32)),
            tail=torch.from_numpy(np.asarray(self.tail[place])),
            weights=torch.from_numpy(np.asarray(self.weights[place])),
        )


@torch.no_grad()
def write_teacher(
    teacher: QueryScorer,
    unobserved: UnobservedQueries,
    known: AnswerIndex,
    folder: str | Path,
    *,
    temperature: float = 1.0,
    k: int = 64,
    seen: Tensor | None = None,
    leftover: bool = False,
    renormalize: bool = False,
    batch_size: int = 512,
) -> TeacherFile:
    """Ask a frozen encoder for its beliefs and keep them; a folder that already holds them is read, not written again.

    Processes share the queries and write into the same files, which lie in a folder that all of them see.

    Args:
        teacher: the encoder; evaluated in eval mode.
        unobserved: the queries.
        known: training answers, masked.
        folder: where the files go.
        temperature: calibration times distillation temperature.
        k: candidates kept per query; the rest goes into the tail.
        seen: ``(N,)`` candidates that the teacher may judge: a structure encoder knows nothing of entities without an
            edge, so that queries about them get weight 0, too.
        leftover: weigh each query by the teacher's mass outside the known answers.
        renormalize: give the tail's mass to the K candidates; the student then becomes sharper than its teacher.
        batch_size: queries scored at a time.

    Raises:
        UserError: the files in the folder are damaged, or the encoder's scores are.
    """
    folder = Path(folder)
    there = (folder / "teacher.json").exists()
    wait_for_all_ranks()  # all have looked before one writes
    if there:
        return read_teacher(folder)
    training = teacher.training
    teacher.eval()
    queries = unobserved.queries
    n = teacher.num_entities
    k = min(k, n - 1)
    batch_size = rows_within(n, batch_size)
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    arrays = _make_files(folder, unobserved, k)
    starts = range(0, len(queries), batch_size)
    with teacher.encoded():
        for start in starts[rank() :: world_size()] if world_size() > 1 else starts:
            part = queries[start : start + batch_size]
            here = slice(start, start + len(part))
            scores = teacher.score_all(part[:, 0].to(device), part[:, 1].to(device)).float().cpu()
            check_scores(scores, len(part), n, "teacher")
            owner, answers, _ = known.of(known.find(part))
            weights = torch.ones(len(part)) if seen is None else seen[part[:, 0]].float()
            if leftover:
                mass = log_probabilities(scores, temperature).exp()
                inside = torch.zeros(len(part)).index_add_(0, owner, mass[owner, answers])
                weights *= (1 - inside).clamp(min=0)
            allowed = torch.ones(len(part), n, dtype=torch.bool)
            allowed[owner, answers] = False
            if seen is not None:
                allowed &= seen
            belief = log_probabilities(scores, temperature, allowed).exp()
            top = belief.topk(k, 1)
            kept = top.values
            outside = (1 - kept.double().sum(1)).clamp(min=0).float()
            if renormalize:
                kept, outside = kept / kept.sum(1, keepdim=True).clamp(min=1e-12), torch.zeros_like(outside)
            found = {"ids": top.indices, "probabilities": kept, "tail": outside, "weights": weights}
            for name, values in found.items():
                arrays[name][here] = values.numpy()
    teacher.train(training)
    for array in arrays.values():
        array.flush()
    wait_for_all_ranks()
    if rank() == 0:
        hashes = {name: _hash(folder / f"{name}.npy") for name in _ARRAYS}
        write_atomically(folder / "teacher.json", json.dumps(hashes))  # last: names only files that are whole
    wait_for_all_ranks()
    return read_teacher(folder)


def _make_files(folder: Path, unobserved: UnobservedQueries, k: int) -> dict[str, np.memmap]:
    """The files, of their final size; beliefs are written into them as they are found, by every process its share."""
    total = len(unobserved)
    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int32, (total, k)),
        "probabilities": (np.float16, (total, k)),
        "tail": (np.float32, (total,)),
        "weights": (np.float32, (total,)),
    }
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "queries.npy", unobserved.queries.numpy())
        np.save(folder / "cross.npy", unobserved.cross.numpy())
        for name, (dtype, shape) in layout.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape).flush()
    wait_for_all_ranks()
    return {name: np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in layout}


def read_teacher(folder: str | Path) -> TeacherFile:
    """Open the files of `write_teacher` without loading them.

    Raises:
        UserError: a file is missing or is not the one that was written.
    """
    folder = Path(folder)
    hashes = read_json(folder / "teacher.json")
    if not isinstance(hashes, dict):
        raise UserError(f"{folder / 'teacher.json'} is damaged: remove {folder} and resume the run")
    for name in _ARRAYS:
        if not (folder / f"{name}.npy").exists() or _hash(folder / f"{name}.npy") != hashes.get(name):
            raise UserError(f"{folder / name}.npy is missing or was changed: remove {folder} and resume the run")
    return TeacherFile(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
