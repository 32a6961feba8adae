"""Options that several systems share, light enough for a command line that only parses: torch is not imported here."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tenfold.errors import UserError
from tenfold.settings import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    import torch


Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "transformer-engine"]
"""Lightning's names of precisions."""


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
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    precision: Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "transformer-engine"] = (
        "32-true"
    )
    gradient_clip: PositiveFloat | None = None
    checkpoint_steps: PositiveInt = 500
    loggers: list[Literal["csv", "tensorboard"]] = field(default_factory=lambda: ["csv"])
    threads: PositiveInt | None = None

    @property
    def device(self) -> "torch.device":
        """The device on which this process evaluates."""
        import torch

        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def check(self) -> None:
        """Refuse an accelerator that is not there, rather than train on another.

        Raises:
            UserError: ``gpu`` is asked for, and torch sees none, or fewer than ``devices``.
        """
        if self.accelerator != "gpu":
            return
        import torch

        if torch.cuda.device_count() < self.devices:
            raise UserError(
                f"trainer.accelerator is gpu with {self.devices} device(s), but torch sees "
                f"{torch.cuda.device_count()}; use --trainer.accelerator auto or cpu"
            )
