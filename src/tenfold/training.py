"""``fit``: how everything here trains, on Lightning's Trainer.

The recipe gives a module, an objective and batches; where it runs (CPU, GPUs, several processes, precision) is
options only. A training that was killed continues from its last checkpoint, in mid-epoch too, and ends with the
same numbers: batches know their position, random states are part of the checkpoint, and library defaults that
would break this are set here and nowhere else.
"""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tenfold.errors import RunStopped, UserError, require
from tenfold.parallel import all_finite, global_batch_norm, mean_over_ranks, rank

Objective = Callable[[nn.Module, Any], tuple[Tensor, dict[str, Tensor]]]
"""Maps the module and a batch to the loss (scalar) and to further numbers to log (scalars)."""

Validation = Callable[[nn.Module], dict[str, float]]


@dataclass
class TrainerOptions:
    """Where and how training runs; what is learnt does not depend on it beyond rounding.

    Attributes:
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: number of devices, which is the number of processes per node.
        num_nodes: number of machines.
        strategy: Lightning's strategy: ``auto``, ``ddp``, ``fsdp`` ...
        precision: Lightning's precision: ``32-true``, ``bf16-mixed``, ``16-mixed`` ...
        gradient_clip: largest norm of the gradient, or null.
        checkpoint_steps: steps between two checkpoints within an epoch; one is written after every epoch, too.
        loggers: Lightning's loggers: ``csv``, ``tensorboard`` (an extra), or none.
        threads: threads of torch's CPU operations, or null for torch's own choice.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    gradient_clip: float | None = None
    checkpoint_steps: int = 500
    loggers: list[Literal["csv", "tensorboard"]] = field(default_factory=lambda: ["csv"])
    threads: int | None = None

    @property
    def device(self) -> torch.device:
        """The device on which this process evaluates."""
        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@dataclass(frozen=True)
class FitResult:
    """What a training leaves behind.

    Attributes:
        history: one row per epoch: ``epoch`` (from 1), ``train/...`` means over the epoch, ``validation/...``.
        best_epoch: epoch whose weights the module holds now.
        steps: optimizer steps in all.
        seconds: wall-clock time over all resumptions.
    """

    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Iterable,
    *,
    epochs: int,
    optimizer: Optimizer,
    schedule: Callable[[int], float] | None = None,
    folder: str | Path,
    options: TrainerOptions | None = None,
    validate: Validation | None = None,
    select: str | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train ``model`` in place; continue from ``folder``'s last checkpoint where there is one.

    Args:
        model: any module; its parameters are those of ``optimizer``. If it comes in eval mode (as another training
            leaves it) it is put into training mode; of one in training mode, parts that are in eval mode stay so.
        objective: see :data:`Objective`; a module's buffers (moving averages) are saved and resumed with it.
        batches: sized iterable of batches. With ``state_dict`` and ``load_state_dict`` (see
            :class:`tenfold.data.TensorBatches`) a training resumes in mid-epoch, without it at the epoch's start.
        epochs: passes over ``batches``.
        optimizer: made on the parameters of ``model``.
        schedule: factor of the learning rates at optimizer step ``s`` (from 0); constant where ``None``.
        folder: where ``last.ckpt``, ``best.pt`` and the loggers' files go; made if need be.
        options: where it runs.
        validate: called after every epoch on every rank, with the module in eval mode and gradients off.
        select: name of the validation number by which the best epoch's weights are kept; the last epoch's if ``None``.
        on_epoch: called after every epoch with its number and its row of the history; for progress.

    Raises:
        RunStopped: a loss was not finite. The message names the step; the last good checkpoint stays.
        UserError: gradients are to be clipped that the optimizer itself unscales.
    """
    options = options or TrainerOptions()
    if options.gradient_clip is not None and options.precision == "16-mixed" and _unscales(optimizer):
        raise UserError(
            "a fused optimizer unscales float16 gradients itself, after they would be clipped: make it with "
            "fused=False, or train with bf16-mixed"
        )
    if not model.training:  # Lightning would leave it so: no dropout, no statistics of the batch
        model.train()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _quieten()
    task = _Task(model, objective, batches, optimizer, schedule, validate, select, on_epoch, folder)
    last = folder / "last.ckpt"
    on_gpu = options.device.type == "cuda"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    trainer = Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options),
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        gradient_clip_val=options.gradient_clip,
        sync_batchnorm=on_gpu and options.devices * options.num_nodes > 1,
        deterministic="warn" if on_gpu else None,
        use_distributed_sampler=False,  # the batches know their ranks
        logger=_loggers(options.loggers, folder),
        callbacks=[_ResumePoint(last, options.checkpoint_steps)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    trainer.fit(
        task, train_dataloaders=_Opaque(batches), ckpt_path=str(last) if last.exists() else None, weights_only=True
    )
    if select is not None and task.best_epoch:
        model.load_state_dict(torch.load(folder / "best.pt", map_location="cpu", weights_only=True))
    model.eval()
    return FitResult(
        history=task.history,
        best_epoch=task.best_epoch or epochs,
        steps=trainer.global_step,
        seconds=task.seconds,
    )


def sgd(
    parameters: Iterable,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent with momentum; ``parameters`` may be groups with settings of their own."""
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def learning_rate_factor(
    kind: Literal["constant", "multistep", "cosine", "linear"],
    *,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    factor: float = 0.1,
    lowest: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_from: float | None = None,
) -> Callable[[int], float]:
    """Factor of the learning rate as a function of the optimizer step.

    Args:
        kind: ``constant``; ``multistep``: times ``factor`` after each of ``milestones`` (epochs); ``cosine`` to
            ``lowest`` after the warm-up; ``linear`` to 0, decaying during the warm-up, too (as mmsegmentation's).
        total_steps: optimizer steps of the whole training.
        steps_per_epoch: optimizer steps of an epoch.
        milestones: numbers of epochs.
        factor: of one milestone.
        lowest: factor at the end of ``cosine``.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: factor of the first step, as MAE begins with 0; where ``None`` the first step is the first part
            of the way from 0.
    """
    warmup = round(warmup_epochs * steps_per_epoch)
    boundaries = [epoch * steps_per_epoch for epoch in milestones]

    def risen(step: int) -> float:
        if step >= warmup:
            return 1.0
        return (step + 1) / warmup if warmup_from is None else warmup_from + (1 - warmup_from) * step / warmup

    def at(step: int) -> float:
        if kind == "linear":
            return risen(step) * (1 - step / total_steps)
        if step < warmup:
            return risen(step)
        if kind == "multistep":
            return factor ** sum(step >= boundary for boundary in boundaries)
        if kind == "cosine":
            done = (step - warmup) / max(total_steps - warmup, 1)
            return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))
        return 1.0

    return at


class _Task(LightningModule):
    """Lightning's view of a training: the module, its objective, and what has been seen so far."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Iterable,
        optimizer: Optimizer,
        schedule: Callable[[int], float] | None,
        validate: Validation | None,
        select: str | None,
        on_epoch: Callable[[int, dict[str, float]], None] | None,
        folder: Path,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self._loader = batches
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
        self._random_state: Tensor | None = None

    @property
    def seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start

    def configure_optimizers(self) -> Any:
        if self._schedule is None:
            return self._optimizer
        scheduler = LambdaLR(self._optimizer, self._schedule)
        return {"optimizer": self._optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Restored here and not when the checkpoint is read: making iterators in between draws random numbers.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
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
                temporary = self._best_file.with_suffix(".tmp")
                torch.save(self.model.state_dict(), temporary)
                temporary.replace(self._best_file)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tenfold"] = {
            "history": self.history,
            "best": self._best,
            "best_epoch": self.best_epoch,
            "sums": self._sums,
            "batches": self._batches,
            "seconds": self.seconds,
            "random_state": torch.get_rng_state(),
        }
        if hasattr(self._loader, "state_dict"):
            checkpoint["tenfold"]["loader"] = self._loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["tenfold"]
        self.history, self._best, self.best_epoch = saved["history"], saved["best"], saved["best_epoch"]
        self._sums, self._batches = saved["sums"], saved["batches"]
        self._earlier_seconds = saved["seconds"]
        self._random_state = saved["random_state"]
        # Here and not by Lightning, which restores a loader's position in the middle of an epoch but not at its end.
        if "loader" in saved and hasattr(self._loader, "load_state_dict"):
            self._loader.load_state_dict(saved["loader"])


class _Opaque:
    """One loader to Lightning, which would take a list of batches for a list of loaders."""

    def __init__(self, batches: Iterable) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator:
        return iter(self.batches)


class _ResumePoint(Checkpoint):
    """Writes ``last.ckpt`` whole or not at all: under a temporary name first, then renamed."""

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
        temporary = self.path.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)  # on every rank: a sharded strategy gathers here
        if trainer.is_global_zero:
            temporary.replace(self.path)


def _unscales(optimizer: Optimizer) -> bool:
    """Whether the optimizer takes scaled gradients and the scaler with them, as torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _strategy(options: TrainerOptions) -> str:
    if options.strategy == "auto" and options.devices * options.num_nodes > 1:
        return "ddp"
    return options.strategy


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
