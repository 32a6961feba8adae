"""AdamW with the published parameter groups: what is decayed, and learning rates that fall with the layer."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.training import TrainerOptions, learning_rate_factor


def layer_number(name: str, depth: int) -> int:
    """Which layer a parameter of a ViT belongs to: 0 embeddings, ``i + 1`` block i, ``depth + 1`` all that follows.

    Args:
        name: of the parameter.
        depth: number of blocks.
    """
    if name.startswith(("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token")):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float | None = None,
    depth: int = 0,
    decay_tokens: bool = False,
) -> list[dict[str, Any]]:
    """Groups of an optimizer.

    Args:
        named: parameters by name; those without gradient are left out.
        learning_rate: of the last layer.
        weight_decay: of matrices; biases and norms have none.
        layer_decay: r of the factor ``r^(depth + 1 - layer)``; none where ``None``.
        depth: number of blocks.
        decay_tokens: decay class token and positions, too, as in pre-training; not in fine-tuning.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias")
        token = name.rsplit(".", 1)[-1] in ("cls_token", "dist_token", "reg_token", "pos_embed")
        decay = 0.0 if plain or (token and not decay_tokens) else weight_decay
        factor = 1.0 if layer_decay is None else layer_decay ** (depth + 1 - layer_number(name, depth))
        group = groups.setdefault(
            (factor, decay), {"params": [], "weight_decay": decay, "lr": learning_rate * factor, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], trainer: TrainerOptions | None = None) -> Optimizer:
    """AdamW on groups of `parameter_groups`.

    Args:
        groups: the groups.
        betas: of the moving averages.
        trainer: where it runs. The fused form is taken unless float16 gradients are to be clipped: it would unscale
            them only after that.
    """
    kept = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    clipped = trainer is not None and trainer.gradient_clip is not None and trainer.precision == "16-mixed"
    return torch.optim.AdamW(kept, betas=betas, fused=not clipped)


def cosine_schedule(*, epochs: int, steps: int, warmup: float, lowest: float = 0.0) -> Any:
    """Linear warm-up, then a cosine; factor of the learning rate by optimizer step.

    Args:
        epochs: of the training.
        steps: of an epoch.
        warmup: epochs of warm-up.
        lowest: factor at the end.
    """
    factor = learning_rate_factor("cosine", total_steps=epochs * steps, steps_per_epoch=steps, warmup_epochs=warmup)
    first = round(warmup * steps)
    return lambda step: factor(step) if step < first else lowest + (1 - lowest) * factor(step)
