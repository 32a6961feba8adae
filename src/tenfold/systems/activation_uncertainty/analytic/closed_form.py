"""Uncertainty without sampling: the closed form of the last layer, and the delta method.

The closed form says why activation strength works at all: with dropout on the last hidden activations h of a linear
output, ``Var(o) = p/(1-p) sum_j w_j^2 h_j^2``, a quadratic form of the activations. It is baseline and product.
"""

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.labels.targets import Target


def closed_form_variance(hidden: Tensor, weight: Tensor, rate: float) -> Tensor:
    """Variance of linear outputs under dropout of their inputs, exactly.

    Args:
        hidden: ``(rows, units)`` activations without dropout.
        weight: ``(outputs, units)``.
        rate: probability of dropping a unit, in (0, 1).

    Returns:
        ``(rows, outputs)``.
    """
    return rate / (1 - rate) * hidden.square() @ weight.square().T


def closed_form_covariance(hidden: Tensor, weight: Tensor, rate: float) -> Tensor:
    """Covariance of linear outputs under dropout of their inputs: ``W diag(p/(1-p) h^2) W^T``.

    Args:
        hidden: ``(rows, units)`` activations without dropout.
        weight: ``(outputs, units)``.
        rate: probability of dropping a unit, in (0, 1).

    Returns:
        ``(rows, outputs, outputs)``.
    """
    return torch.einsum("ou,nu,pu->nop", weight, rate / (1 - rate) * hidden.square(), weight)


def delta_method(target: Target, output: Tensor, covariance: Tensor) -> Tensor:
    """Uncertainty ``(rows,)`` from the covariance of the outputs, to first order.

    Args:
        target: ``regression``, ``binary``, ``binary-logit``, ``class`` or ``mean-class``.
        output: ``(rows,)`` or ``(rows, classes)`` outputs.
        covariance: ``(rows, outputs, outputs)`` of the outputs; or ``(rows, outputs)``, their variances alone.

    Raises:
        UserError: the target has no first-order form.
    """
    diagonal = covariance.ndim == 2
    if not target.classes:
        variance = covariance.flatten(1)[:, 0]
        slope = output * 0 + 1
        if target.name == "binary":
            slope = output.sigmoid() * (1 - output.sigmoid())
        return variance.clamp(min=0).sqrt() * slope
    if target.name not in ("class", "mean-class"):
        raise UserError(f"target {target.name!r} has no first-order form; use class or mean-class")
    p = output.softmax(-1)
    jacobian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]  # dP_c / do_d
    if diagonal:
        variances = jacobian.square() @ covariance[:, :, None]
        variances = variances[..., 0]
    else:
        variances = torch.einsum("ncd,nde,nce->nc", jacobian, covariance, jacobian)
    deviations = variances.clamp(min=0).sqrt()
    if target.name == "mean-class":
        return deviations.mean(1)
    return deviations.gather(1, output.argmax(1, keepdim=True))[:, 0]
