"""How far a fusion has come: best weights, and what each EM round injected."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import read_torch_file
from tenfold.systems.graph_fusion.fusion.densification import Injected


@dataclass
class Best:
    """An encoder's weights at its best validation MRR so far.

    Attributes:
        mrr: on validation.
        stage: phase in which it was reached.
        state: the weights.
    """

    mrr: float
    stage: str
    state: dict[str, Tensor]


def read_best(path: Path) -> Best:
    """The best weights that a killed phase kept.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return Best(**read_torch_file(path))
    except (UserError, TypeError) as error:
        raise UserError(f"{path} is damaged: remove the folder {path.parent} and resume") from error


@dataclass
class Round:
    """What one EM round injected.

    Attributes:
        number: of the round, from 1.
        injected: the triples, their confidence and source.
        unobserved: number of unobserved queries, residual and cross.
        precision: see `precision_curve`, of all candidates.
        true_share: share of the injected triples that are known to be true; ``None`` if nothing was injected.
    """

    number: int
    injected: Injected
    unobserved: tuple[int, int]
    precision: dict[str, list[float | None]]
    true_share: float | None
