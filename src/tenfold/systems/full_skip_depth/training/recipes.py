"""The two published ways to train depth networks: parameter groups, optimizer, schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.networks.depth_network import FullSkipDepth

RecipeName = Literal["adabins", "bts"]


@dataclass(frozen=True)
class Recipe:
    """A published training recipe, with its learning rate and weight decay open to change.

    Attributes:
        name: ``adabins``: AdamW, weight decay 0.1, the encoder at a tenth of the learning rate, one cycle; ``bts``:
            AdamW with eps 1e-3, weight decay 0.01 on the encoder alone, its first convolution and the parameters of its
            batch normalizations frozen, polynomial decay (power 0.9) to a tenth.
        learning_rate: highest; 3.57e-4 (AdaBins) or 1e-4 (BTS) as published.
        weight_decay: see ``name``.
        encoder_factor: of the encoder's learning rate; 0.1 (AdaBins) or 1 (BTS) as published.
    """

    name: RecipeName = "adabins"
    learning_rate: float = 3.57e-4
    weight_decay: float = 0.1
    encoder_factor: float = 0.1

    def optimizer(self, network: FullSkipDepth, *, fused: bool = False) -> Optimizer:
        """AdamW on the network's parameter groups; what the recipe freezes stops requiring gradients.

        Args:
            network: whose parameters are learnt.
            fused: all parameters in one call, which saves small networks a tenth of a step; not with float16 gradients
                that are clipped, see ``fit``.
        """
        encoder = list(network.encoder.parameters())
        others = [p for name, p in network.named_parameters() if not name.startswith("encoder.")]
        rate = self.learning_rate
        if self.name == "adabins":
            groups = [{"params": encoder, "lr": rate * self.encoder_factor}, {"params": others, "lr": rate}]
            return torch.optim.AdamW(groups, lr=rate, weight_decay=self.weight_decay, betas=(0.95, 0.99), fused=fused)
        if self.name != "bts":
            raise UserError(f"there is no training recipe {self.name!r}; there are: adabins, bts")
        freeze_first_convolution_and_norms(network.encoder)
        groups = [
            {
                "params": [p for p in encoder if p.requires_grad],
                "lr": rate * self.encoder_factor,
                "weight_decay": self.weight_decay,
            },
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, eps=1e-3, fused=fused)

    def schedule(self, total_steps: int) -> Callable[[int], float]:
        """Factor of the learning rates as a function of the step."""
        if self.name == "bts":
            return lambda step: 0.1 + 0.9 * (1 - min(step, total_steps) / total_steps) ** 0.9
        return one_cycle(total_steps)


def one_cycle(total_steps: int, *, rise: float = 0.3, divide: float = 25.0, final_divide: float = 100.0) -> Callable:
    """Factor of the learning rate in one cycle (Smith and Topin): a cosine up from 1/25, a cosine down.

    Args:
        total_steps: of the training.
        rise: share of the steps that rise.
        divide: the first factor is 1 over it.
        final_divide: the last factor is 1 / (``divide`` * ``final_divide``).
    """
    top = max(1, round(rise * total_steps) - 1)
    last = max(top + 1, total_steps - 1)

    def at(step: int) -> float:
        if step <= top:
            return _cosine(1 / divide, 1.0, step / top)
        return _cosine(1.0, 1 / (divide * final_divide), min(1.0, (step - top) / (last - top)))

    return at


def freeze_first_convolution_and_norms(encoder: nn.Module) -> None:
    """Stop gradients of the first convolution and of all batch normalizations' parameters, as BTS does."""
    first = True
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d) and first:
            layer.requires_grad_(False)
            first = False
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.requires_grad_(False)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
