"""AdamW as published: no decay of biases and blocks' norms, a faster task classifier, warm-up and linear decay."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

_NOT_DECAYED = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, classifier_factor: float = 1.0
) -> list[dict]:
    """The optimizer's groups; every trainable parameter is in exactly one.

    As in the official program the norm inside the heads, which is no module of that name, decays.

    Args:
        model: the network; its head is called ``classifier``.
        learning_rate: of all but the classifier.
        weight_decay: of what decays.
        classifier_factor: times the learning rate for the task classifier alone, not for the fusion; 10 for VQA.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = name.startswith("classifier.")
            decays = not name.endswith(_NOT_DECAYED)
            groups.setdefault((head, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (classifier_factor if head else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in groups.items()
    ]


def adamw(groups: Sequence[dict]) -> torch.optim.Optimizer:
    """AdamW with betas (0.9, 0.98) and eps 1e-8.

    Args:
        groups: see ``parameter_groups``.
    """
    return torch.optim.AdamW(list(groups), betas=(0.9, 0.98), eps=1e-8, fused=False)


def warmup_linear(total_steps: int, share: float = 0.1) -> Callable[[int], float]:
    """Factor of the learning rate: up over the first ``share`` of the steps, then linearly to 0.

    Args:
        total_steps: optimizer steps of the whole training.
        share: of the warm-up.
    """
    warmup = max(1, round(share * total_steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

    return factor
