"""What a distillation changes in the networks that it is given, and gives back: frozen parts, modes, head counts."""

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.attention.heads import heads_per_block, set_heads_per_block
from tenfold.attention.layers import bare


class Lent:
    """The state of a network before a distillation: which parameters learn, modes, device, heads of each layer.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.learns = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
        self.training = {name: module.training for name, module in network.named_modules()}
        self.heads = heads_per_block(bare(network))
        first = next(network.parameters(), None)
        self.device = None if first is None else first.device

    def give_back(self, *, keep_heads: bool = False) -> None:
        """Put the network back into that state; its weights stay.

        Args:
            keep_heads: leave the layers with the head counts that they have now.
        """
        if self.device is not None:
            self.network.to(self.device)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.learns.get(name, True))
        for name, module in self.network.named_modules():
            module.training = self.training.get(name, module.training)
        if not keep_heads and heads_per_block(bare(self.network)) != self.heads:
            set_heads_per_block(bare(self.network), self.heads)


def freeze_unreached(student: nn.Module, loss: Tensor) -> list[str]:
    """Freeze the parameters that a loss does not depend on.

    They would stay at their random initial values, be decayed by the optimizer, and make distributed training wait for
    gradients that never come.

    Args:
        student: the network.
        loss: a loss of it, with its graph.

    Returns:
        Names of the largest modules none of whose parameters has a gradient.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    unreached = {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None}
    for name, parameter in named:
        if name in unreached:
            parameter.requires_grad_(False)
    listed: list[str] = []
    for name, module in student.named_modules():
        own = {f"{name}.{p}" if name else p for p, _ in module.named_parameters()}
        if name and own and own <= unreached and not any(name.startswith(f"{above}.") for above in listed):
            listed.append(name)
    return listed + sorted(p for p in unreached if not any(p.startswith(f"{module}.") for module in listed))


def leave_teacher_out(distiller: nn.Module) -> None:
    """Keep ``distiller.teacher`` out of its state dict: frozen, it would only swell every checkpoint."""
    distiller.register_state_dict_post_hook(_drop_teacher)
    distiller.register_load_state_dict_pre_hook(_restore_teacher)


def _drop_teacher(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}teacher.")]:
        del state[name]


def _restore_teacher(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, value in module.teacher.state_dict().items():
        state.setdefault(f"{prefix}teacher.{name}", value)
