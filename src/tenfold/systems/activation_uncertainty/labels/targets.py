"""What is called uncertainty: a number per input, from the outputs of T passes with dropout.


    regression     U = std_t(o_t)
    binary         U = std_t(sigmoid(o_t));                  binary-logit: std_t(o_t)
    class          U = std_t(P_t[k]), k the class that the pass without dropout predicts
    mean-class     U = mean_c std_t(P_t[c])
    mutual-information   U = H(mean_t P_t) - mean_t H(P_t)   (BALD)
    kl             U = mean_t KL(P_t || mean P), which is the same number: kept because the two names are in use

Papers A and B define uncertainty as the variation of the predictions on an input; the forms for several classes are
reconstructed. Divisor of variances: T - 1.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tenfold.errors import UserError

TargetName = Literal["regression", "binary", "binary-logit", "class", "mean-class", "mutual-information", "kl"]
_CLASSES = ("class", "mean-class", "mutual-information", "kl")


def entropy(probabilities: Tensor) -> Tensor:
    """``-sum_c P log P`` in nats over the last axis, 0 log 0 being 0."""
    return torch.special.entr(probabilities).sum(-1)


@dataclass(frozen=True)
class Target:
    """One definition of uncertainty.

    Attributes:
        name: see the module's description.
    """

    name: TargetName

    def __post_init__(self) -> None:
        if self.name not in get_args(TargetName):
            raise UserError(f"target must be one of {', '.join(get_args(TargetName))}; got {self.name!r}")

    @property
    def power(self) -> float:
        """``U = spread ** power``: 0.5 where the spread is a variance, 1 where it is the uncertainty itself."""
        return 0.5 if self.name in ("regression", "binary", "binary-logit", "class") else 1.0

    @property
    def classes(self) -> bool:
        """Whether outputs are logits of several classes."""
        return self.name in _CLASSES

    def check(self, output: Tensor) -> Tensor:
        """The outputs ``(rows, classes)`` or ``(rows,)`` as float64, one row per input (or token).

        Raises:
            UserError: their shape does not fit, or they are not finite.
        """
        if self.classes:
            if output.ndim < 2 or output.shape[-1] < 2:
                raise UserError(
                    f"target {self.name!r} needs logits (batch, classes) of two or more; got {tuple(output.shape)}: a "
                    "network with one output per input has target regression or binary"
                )
            output = output.flatten(0, -2)
        elif output.ndim > 1 and output.shape[-1] != 1:
            raise UserError(
                f"target {self.name!r} needs one number per input; got {tuple(output.shape)}: choose one with output"
            )
        else:
            output = output.flatten()
        output = output.double()
        if not torch.isfinite(output).all():
            raise UserError("the network gives NaN or infinite outputs; look for bad inputs")
        return output

    def quantities(self, output: Tensor) -> Tensor:
        """What is averaged over passes: ``(..., rows, quantities)`` of outputs ``(..., rows[, classes])``."""
        if self.classes:
            probabilities = output.softmax(-1)
            return torch.cat([probabilities, entropy(probabilities)[..., None]], dim=-1)
        return (output.sigmoid() if self.name == "binary" else output)[..., None]

    def spread(self, mean: Tensor, m2: Tensor, passes: int, predicted: Tensor) -> Tensor:
        """The label of each row ``(rows,)``: a variance, or the uncertainty itself; see ``power``.

        Args:
            mean: ``(rows, quantities)`` over the passes.
            m2: ``(rows, quantities)`` sums of squared deviations from it.
            passes: number of passes, at least 2.
            predicted: ``(rows,)`` class of the pass without dropout; ignored where there are no classes.
        """
        variance = m2 / (passes - 1)
        if not self.classes:
            return variance[:, 0]
        if self.name == "class":
            return variance.gather(1, predicted[:, None])[:, 0]
        if self.name == "mean-class":
            return variance[:, :-1].sqrt().mean(1)
        return (entropy(mean[:, :-1]) - mean[:, -1]).clamp(min=0)

    def prediction(self, output: Tensor) -> Tensor:
        """What a user is told beside the uncertainty: the value, the probability, or the class's probabilities."""
        if self.classes:
            return output.softmax(-1)
        return output.sigmoid() if self.name == "binary" else output


def guess_target(output: Tensor) -> TargetName:
    """``class`` for outputs of several numbers per input, ``regression`` for one."""
    return "class" if output.ndim > 1 and output.shape[-1] > 1 else "regression"
