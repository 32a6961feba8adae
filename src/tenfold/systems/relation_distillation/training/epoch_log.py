"""One JSON line per epoch: losses, learning rate, speed, memory, and what is measured beside them."""

import json
import time
from pathlib import Path
from typing import Protocol

import torch
from torch.optim import Optimizer

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.run import peak_process_memory_mb

LOG = "epochs.jsonl"


class Progress(Protocol):
    """What shows how far a training is; a `tenfold.run.Run` is one."""

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` epochs of the training ``name``."""


class EpochLog:
    """Writes ``epochs.jsonl`` beside a training's checkpoints; its rows are those of the training, also if it resumed.

    Args:
        folder: of the training.
        optimizer: gives the learning rate, the largest of its groups'.
        images: of an epoch, over all processes; the speed is left out where ``None``.
    """

    def __init__(self, folder: str | Path, optimizer: Optimizer, images: int | None = None) -> None:
        self.path = Path(folder) / LOG
        self.optimizer, self.images = optimizer, images
        self._began = time.monotonic()

    def __call__(self, epoch: int, row: dict[str, float]) -> None:
        """Add an epoch's row; rows of this epoch or later ones, left by a training that was killed, go."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else peak_process_memory_mb()
        line = {
            "epoch": epoch,
            **{name.removeprefix("train/"): value for name, value in row.items() if name != "epoch"},
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            **({} if self.images is None else {"images_per_second": round(self.images / seconds, 1)}),
            "peak_memory_mb": round(memory, 1),
        }
        earlier = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        try:
            kept = [text for text in earlier if json.loads(text)["epoch"] < epoch]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} is damaged; remove it and resume: only the log so far is lost") from error
        write_atomically(self.path, "\n".join([*kept, json.dumps(line)]) + "\n")
