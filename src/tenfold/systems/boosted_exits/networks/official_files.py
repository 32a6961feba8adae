"""The files that the official programs write beside their checkpoints, and how files of others are read here.

Nothing that a file holds is executed: tensors and plain values are read, other objects are refused.
"""

import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import read_text
from tenfold.models.checkpoints import read_torch_file


def read_saved(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors, plain values and ``argparse.Namespace``, on the CPU.

    Raises:
        UserError: the file cannot be read, or holds anything else.
    """
    return read_torch_file(path, allow=[Namespace])


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file that are not blank.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    text = read_text(path)
    return [line for line in text.splitlines() if line.strip()]


def read_costs(path: str | Path) -> list[float]:
    """Costs ``C_1 .. C_N`` from ``flops.pth``: multiply-adds, or millions of them in early files (``flop.pth``)."""
    content = read_saved(Path(path))
    if not isinstance(content, list) or not content or not all(isinstance(cost, int | float) for cost in content):
        raise UserError(f"{path} does not hold a list of costs, one number per exit")
    return [float(cost) for cost in content]


def read_split_permutation(path: str | Path) -> Tensor:
    """The permutation of the training set from ``index.pth``: ``(samples,)`` integers, validation last."""
    content = read_saved(Path(path))
    if not isinstance(content, Tensor) or content.ndim != 1 or content.dtype != torch.int64:
        raise UserError(f"{path} does not hold a permutation: a 1-D tensor of 64-bit integers")
    if not torch.equal(content.sort().values, torch.arange(len(content))):
        raise UserError(f"{path} does not hold a permutation: an index is missing or occurs twice")
    return content


@dataclass(frozen=True)
class ExitProbabilities:
    """What ``logits_single.pth`` holds, which are probabilities in spite of its name.

    Attributes:
        validation: ``(exits, samples, classes)`` probabilities of the validation set.
        validation_targets: ``(samples,)`` class indices.
        test: ``(exits, samples, classes)`` probabilities of the test set.
        test_targets: ``(samples,)`` class indices.
    """

    validation: Tensor
    validation_targets: Tensor
    test: Tensor
    test_targets: Tensor


def read_exit_probabilities(path: str | Path) -> ExitProbabilities:
    """Read ``logits_single.pth``.

    Raises:
        UserError: it holds something else, or numbers that are not probabilities or class indices.
    """
    content = read_saved(Path(path))
    if not isinstance(content, tuple | list) or len(content) != 4:
        raise UserError(f"{path} does not hold the four parts of logits_single.pth")
    validation, validation_targets = _probabilities(content[0], content[1], path)
    test, test_targets = _probabilities(content[2], content[3], path)
    return ExitProbabilities(validation, validation_targets, test, test_targets)


def _probabilities(values: Any, targets: Any, path: str | Path) -> tuple[Tensor, Tensor]:
    try:
        # MSDNet-PyTorch writes a list with one tensor per exit; BoostNet writes class indices as floats.
        probabilities = torch.stack(list(values)).float()
        classes = targets.long()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path} does not hold tensors of probabilities and of class indices") from error
    if probabilities.ndim != 3 or classes.shape != probabilities.shape[1:2]:
        raise UserError(
            f"{path} holds probabilities {tuple(probabilities.shape)} for classes {tuple(classes.shape)}; they should "
            f"be (exits, samples, classes) and (samples,)"
        )
    sums = probabilities.sum(-1)
    if not ((probabilities >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        raise UserError(f"{path} holds numbers that are not probabilities; softmax should have been applied")
    if classes.numel() and not 0 <= classes.min() <= classes.max() < probabilities.shape[2]:
        raise UserError(f"{path} holds class indices outside 0 .. {probabilities.shape[2] - 1}")
    return probabilities, classes


@dataclass(frozen=True)
class AnytimePoint:
    """One line of ``any*.txt``: cost in multiply-adds, parameters, accuracies in %, of one exit."""

    cost: float
    parameters: float
    top1: float
    top5: float


@dataclass(frozen=True)
class BudgetPoint:
    """One line of ``dynamic*.txt``: expected cost in multiply-adds, and accuracy in the file's unit (mostly %)."""

    cost: float
    accuracy: float


def read_anytime(path: str | Path) -> list[AnytimePoint]:
    """Read ``any*.txt``: one line ``cost parameters top1 top5`` per exit."""
    return [AnytimePoint(*row) for row in _read_table(Path(path), 4)]


def read_dynamic(path: str | Path, project: Literal["boostnet", "msdnet", "ranet"] | None = None) -> list[BudgetPoint]:
    """Read ``dynamic*.txt`` or ``dynamic_flat*.txt``.

    Args:
        path: the file.
        project: what wrote it: BoostNet writes the cost first, MSDNet-PyTorch and RANet-pytorch the accuracy. Where it
            is ``None``, the accuracy is the column that stays within 0 to 100 while the other one stays above.

    Raises:
        UserError: the file cannot be read, or ``project`` is ``None`` and the columns do not tell.
    """
    rows = _read_table(Path(path), 2)
    if project is None:
        cost_first = all(0 <= second <= 100 < first for first, second in rows)
        if not cost_first and not all(0 <= first <= 100 < second for first, second in rows):
            raise UserError(f"{path} does not tell its cost from its accuracy; name the project that wrote it")
    else:
        cost_first = project == "boostnet"
    return [BudgetPoint(*(row if cost_first else reversed(row))) for row in rows]


def _read_table(path: Path, columns: int) -> list[list[float]]:
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = [float(cell) for cell in line.split()]
        except ValueError:
            row = []
        if len(row) != columns or not all(math.isfinite(cell) for cell in row):
            raise UserError(f"{path}, line {number}: {line!r} is not {columns} finite numbers")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty")
    return rows
