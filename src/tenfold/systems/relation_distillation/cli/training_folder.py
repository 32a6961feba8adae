"""The folder of a training that a verb started: new, or one that was stopped with the same settings."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tenfold.errors import UserError
from tenfold.parallel import rank
from tenfold.run import read_json, write_atomically
from tenfold.systems.relation_distillation.experiment.settings import (
    DataOptions,
)

NAMED = tuple(name for name in get_args(get_type_hints(DataOptions)["name"]) if name not in ("imagenet", "folder"))
SETTINGS = "training.json"
WHERE = ("quiet", "devices", "workers")  # settings that do not change what is learnt


class Lines:
    """Progress as lines on the console."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` epochs of the training ``name``."""
        if not self.quiet:
            print(f"{name}: {done}/{total} {note}", file=sys.stderr, flush=True)


def settle(out: str, arguments: dict[str, Any]) -> Path:
    """The folder of a training: new, or one that was stopped with the same settings."""
    folder = Path(out)
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a finished model; name another folder with --out")
    if (folder / SETTINGS).exists():
        check_settings(folder, arguments)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no training; name a new folder with --out")
    return folder


def check_settings(folder: Path, arguments: dict[str, Any]) -> None:
    """Refuse to go on with other settings than those that the folder's training began with."""
    before = read_json(folder / SETTINGS)
    differs = next((name for name, value in arguments.items() if before.get(name) != value), None)
    if differs:
        raise UserError(f"{folder} holds a training with another {differs}; name another folder with --out")


@contextmanager
def begun(folder: Path, arguments: dict[str, Any]) -> Iterator[None]:
    """Write down the settings; take them away again where wrong input ends the training before its first checkpoint."""
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    if rank() == 0:
        write_atomically(folder / SETTINGS, json.dumps(arguments, indent=1) + "\n")
    try:
        yield
    except UserError:
        if fresh and rank() == 0 and not (folder / "training/last.ckpt").exists():
            shutil.rmtree(folder)
        raise
