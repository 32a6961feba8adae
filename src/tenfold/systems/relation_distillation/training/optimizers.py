"""AdamW with the published parameter groups: what is decayed, and learning rates that fall with the layer."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import require
from tenfold.training.options import TrainerOptions

_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")


def plain_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of pre-training: matrices, tokens and positions are decayed, biases and norms are not.

    Args:
        module: its parameters that have a gradient are taken.
        weight_decay: of matrices.
    """
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (weight_decay, 0.0)]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim <= 1 or name.endswith(".bias")]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def layered_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of fine-tuning: layer-wise decay as timm groups a network's layers; tokens and positions are not decayed.

    Args:
        model: timm vision transformer.
        learning_rate: of its last layer.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below.
    """
    timm = require("timm.optim", "timm")
    plain = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1
        or name.endswith(".bias")
        or name.rsplit(".", 1)[-1] in _TOKENS
        or "relative_position" in name
    ]
    groups = timm.param_groups_layer_decay(model, weight_decay, plain, layer_decay=layer_decay)
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": learning_rate * group["lr_scale"]}
        for group in groups
    ]


def adamw(
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
    trainer: TrainerOptions | None = None,
) -> Optimizer:
    """AdamW on groups of parameters.

    Args:
        groups: the groups.
        learning_rate: of groups without their own.
        betas: of the moving averages.
        trainer: where it runs. The fused form is taken unless float16 gradients are to be clipped: it would unscale
            them only after that.
    """
    clipped = trainer is not None and trainer.gradient_clip is not None and trainer.precision == "16-mixed"
    return torch.optim.AdamW([dict(group) for group in groups], lr=learning_rate, betas=betas, fused=not clipped)
