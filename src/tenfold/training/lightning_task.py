"""Lightning's side of ``tenfold.training.fit``: the task, the batches, the checkpoints. Imported when it trains."""

import logging
import math
import os
import random
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tenfold.errors import RunStopped, UserError, require
from tenfold.training.options import TrainerOptions
from tenfold.training.parallel import all_finite, global_batch_norm, mean_over_ranks, rank


def train(
    model: nn.Module,
    objective: Callable,
    batches: Iterable,
    *,
    epochs: int,
    optimizer: Optimizer,
    schedule: Callable[[int], float] | None,
    folder: Path,
    options: TrainerOptions,
    validate: Callable | None,
    select: str | None,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
) -> dict[str, Any]:
    """What ``tenfold.training.fit`` does, which see; gives the fields of its result."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    _quieten()
    loader = ResumableBatches(batches)
    task = _Task(model, objective, loader, optimizer, schedule, validate, select, on_epoch, folder)
    last, best = folder / "last.ckpt", folder / "best.pt"
    resumed = last.exists()
    if resumed:
        check_checkpoint(last)
        if select is not None and best.exists():
            check_checkpoint(best)
    on_gpu = options.device.type == "cuda"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options),
        precision=options.precision,
        max_epochs=epochs,
        gradient_clip_val=options.gradient_clip,
        sync_batchnorm=on_gpu and options.devices * options.num_nodes > 1,
        deterministic="warn" if on_gpu else None,
        use_distributed_sampler=False,  # the batches know their ranks
        logger=_loggers(options.loggers, folder),
        callbacks=[_ResumePoint(last, options.checkpoint_steps)],
        plugins=[] if _is_sharded(options) else [_WholeFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    try:
        trainer.fit(task, train_dataloaders=loader, ckpt_path=str(last) if resumed else None, weights_only=True)
    except SystemExit as leaving:  # Lightning's way to end after Ctrl-C, with a code that says an error
        if trainer.interrupted:  # by Ctrl-C, or by SIGTERM, which is another kind of the same
            first = leaving.__context__
            raise first if isinstance(first, KeyboardInterrupt) else KeyboardInterrupt from leaving
        raise
    if select is not None and task.best_epoch:
        model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    return {
        "history": task.history,
        "best_epoch": task.best_epoch or epochs,
        "steps": trainer.global_step,
        "seconds": task.seconds,
    }


def random_states() -> dict[str, Any]:
    """States of the generators that training draws from (torch's, numpy's, Python's), as plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global one is what loaders use)
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put the generators where ``random_states`` found them."""
    torch.set_rng_state(states["torch"])
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate((3, tuple(states["python"]), states["python_gauss"]))


class ResumableBatches:
    """One loader to Lightning, which would take a list of batches for a list of loaders; it knows where it stands.

    Batches with ``state_dict`` keep their own position. Of others the random states at the start of the epoch are kept:
    a resumed epoch is begun from them, so that it has the same order, and passes over what was seen.
    """

    def __init__(self, batches: Iterable) -> None:
        self.batches = batches
        self._at_start: dict[str, Any] | None = None
        self._resume: tuple[dict[str, Any], int] | None = None

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator:
        return iter(self.batches) if self._keeps_position else self._from_place()

    def _from_place(self) -> Iterator:
        # A generator: Lightning makes iterators that it never asks for a batch, which must not begin an epoch.
        seen = 0
        if self._resume is not None:
            states, seen = self._resume
            self._resume = None
            self._set_states(states)
        self._at_start = self._states()
        iterator = iter(self.batches)
        for number in range(seen):
            if next(iterator, None) is None:
                raise UserError(f"the data ends after {number} batches; the training that is resumed had seen {seen}")
        yield from iterator

    def set_epoch(self, epoch: int) -> None:
        """Tell a sampler that orders by the epoch's number, as torch's distributed one does."""
        sampler = getattr(self.batches, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    def place(self, seen: int) -> Any:
        """Where the epoch stands after ``seen`` batches."""
        if self._keeps_position:
            return self.batches.state_dict()  # type: ignore[attr-defined]
        return {"seen": seen, "states": self._at_start if seen else self._states()}

    def go_to(self, place: Any) -> None:
        """Go where ``place`` was asked."""
        if self._keeps_position:
            self.batches.load_state_dict(place)  # type: ignore[attr-defined]
        else:
            self._resume = (place["states"], place["seen"])

    def begins_an_epoch(self, place: Any) -> bool:
        """Whether ``go_to`` sets the random states of an epoch's start."""
        return not self._keeps_position and place["seen"] == 0

    @property
    def _keeps_position(self) -> bool:
        return hasattr(self.batches, "state_dict") and hasattr(self.batches, "load_state_dict")

    def _generators(self) -> list[torch.Generator]:
        """Those that the loader or its sampler was given."""
        sampler = getattr(self.batches, "sampler", None)
        found = [getattr(holder, "generator", None) for holder in (self.batches, sampler)]
        return [generator for generator in found if isinstance(generator, torch.Generator)]

    def _states(self) -> dict[str, Any]:
        return random_states() | {"generators": [generator.get_state() for generator in self._generators()]}

    def _set_states(self, states: dict[str, Any]) -> None:
        set_random_states(states)
        for generator, state in zip(self._generators(), states["generators"], strict=True):
            generator.set_state(state)


class _Task(LightningModule):
    """Lightning's view of a training: the module, its objective, and what has been seen so far."""

    def __init__(
        self,
        model: nn.Module,
        objective: Callable,
        batches: "ResumableBatches",
        optimizer: Optimizer,
        schedule: Callable[[int], float] | None,
        validate: Callable | None,
        select: str | None,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
        folder: Path,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.loader = batches
        self._optimizer = optimizer
        self._schedule = schedule
        self._validate = validate
        self._select = select
        self._on_epoch = on_epoch
        self._best_file = folder / "best.pt"
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self._best = -math.inf
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._earlier_seconds = 0.0
        self._start = time.monotonic()
        self._random_state: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start

    def on_train_epoch_start(self) -> None:
        self.loader.set_epoch(self.current_epoch)

    def configure_optimizers(self) -> Any:
        if self._schedule is None:
            return self._optimizer
        scheduler = LambdaLR(self._optimizer, self._schedule)
        return {"optimizer": self._optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Restored here and not when the checkpoint is read: making iterators in between draws random numbers.
        if self._random_state is not None:
            set_random_states(self._random_state)
            self._random_state = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with global_batch_norm(self.model) if self.device.type == "cpu" else nullcontext():
            loss, logged = self.objective(self.model, batch)
        if not all_finite(loss.detach()):
            raise RunStopped(
                f"the loss is {loss.item():g} at step {self.global_step} (epoch {self.current_epoch + 1}); "
                f"the last good checkpoint is kept in {self._best_file.parent}. "
                "Lower the learning rate, clip gradients (--trainer.gradient_clip) or look for bad inputs"
            )
        for name, value in {"loss": loss, **logged}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._batches += 1
        return loss

    def on_train_epoch_end(self) -> None:
        epoch = self.current_epoch + 1
        row: dict[str, float] = {"epoch": epoch}
        row |= {f"train/{name}": (mean_over_ranks(total) / self._batches).item() for name, total in self._sums.items()}
        self._sums, self._batches = {}, 0
        if self._validate is not None:
            self.model.eval()
            with torch.no_grad():
                row |= {f"validation/{name}": float(value) for name, value in self._validate(self.model).items()}
            self.model.train()
        self.history.append(row)
        self.log_dict({name: value for name, value in row.items() if name != "epoch"}, rank_zero_only=True)
        self._keep_best(epoch, row)
        if self._on_epoch is not None and rank() == 0:
            self._on_epoch(epoch, row)

    def _keep_best(self, epoch: int, row: dict[str, float]) -> None:
        if self._select is None:
            return
        value = row[f"validation/{self._select}"]
        if value > self._best:
            self._best, self.best_epoch = value, epoch
            if rank() == 0:
                _save_whole(self.model.state_dict(), self._best_file)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tenfold"] = {
            "history": self.history,
            "best": self._best,
            "best_epoch": self.best_epoch,
            "sums": self._sums,
            "batches": self._batches,
            "seconds": self.seconds,
            "random_state": random_states(),
            "loader": self.loader.place(self._batches),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["tenfold"]
        self.history, self._best, self.best_epoch = saved["history"], saved["best"], saved["best_epoch"]
        self._sums, self._batches = saved["sums"], saved["batches"]
        self._earlier_seconds = saved["seconds"]
        # At an epoch's start the loader itself goes back to the states before its order was drawn.
        self._random_state = None if self.loader.begins_an_epoch(saved["loader"]) else saved["random_state"]
        # Here and not by Lightning, which restores a loader's position in the middle of an epoch but not at its end.
        self.loader.go_to(saved["loader"])


class _ResumePoint(Checkpoint):
    """When ``last.ckpt`` is written: every so many steps, and after every epoch."""

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path = path
        self.every_steps = every_steps

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # The epoch's last batch is left to the end of the epoch.
        if trainer.global_step % self.every_steps == 0 and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)  # on every rank: a sharded strategy gathers here


class _WholeFiles(TorchCheckpointIO):
    """Writes beside the checkpoint and renames; Lightning's own way goes through the system's temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _save_whole(checkpoint, Path(path))


def _save_whole(content: Any, path: Path) -> None:
    """``torch.save`` whole or not at all; a disk that is full stops the run, the earlier file stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError when a write fails
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the write failed"
        raise RunStopped(
            f"cannot write the checkpoint {path}: {reason}; make room and continue with --resume, from the checkpoint "
            "before it"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that is damaged before a training takes it for its own.

    Raises:
        UserError: names the file and the way on.
    """
    way_on = f"remove the folder {path.parent} and resume again: this step then starts from its beginning"
    if path.is_dir():  # of a sharded strategy
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged archive can end the reader anywhere
        raise UserError(f"{path} is damaged or cut short; {way_on}") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged (at {damaged}); {way_on}")
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of this program; {way_on}") from error


def _strategy(options: TrainerOptions) -> str:
    if options.strategy == "auto" and options.devices * options.num_nodes > 1:
        return "ddp"
    return options.strategy


def _is_sharded(options: TrainerOptions) -> bool:
    return any(name in options.strategy for name in ("fsdp", "deepspeed", "model_parallel"))


def _loggers(names: Sequence[str], folder: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    if "tensorboard" in names:
        require("tensorboard", "tensorboard")
    makers = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    return [makers[name](save_dir=folder, name="metrics") for name in names] or False


def _quieten() -> None:
    """Leave the console to tenfold's own progress: Lightning's banners say nothing about this run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
