"""Exits on any network: heads on named modules, the network itself untouched.


    exits = attach_exits(resnet18(), ["layer1", "layer2", "layer3"], example=torch.zeros(2, 3, 224, 224))
    f_1, f_2, f_3, f_4 = exits(images)      # f_4 is the network's own output

Training goes through hooks and computes all exits; to stop at one, cut the network into stages
(``cut``).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.taps import find_module, first_tensor, tap_hooks
from tenfold.systems.boosted_exits.attach.heads import Pool, automatic_head, run_head
from tenfold.systems.boosted_exits.method import ensemble_logits, expand_reweight, rescale_gradient

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A batch: one tensor, a tuple of positional arguments, or a dict of keyword arguments."""

_FINETUNE_TRUNK_FACTOR = 0.1
"""Learning rate of a fine-tuned trunk, as a share of the heads'."""


def network_logits(output: Any) -> Tensor:
    """Logits in a network's output: its ``logits``, as the model outputs of transformers have, or its first tensor.

    Raises:
        UserError: there is neither.
    """
    logits = output.logits if hasattr(output, "logits") else first_tensor(output)
    if logits is None:
        raise UserError(f"the network's output, {type(output).__name__}, holds no logits: give output=...")
    return logits


class AttachedExits(nn.Module):
    """A network with heads on some of its modules; made by ``attach_exits``.

    Its face is that of ``EarlyExitModel``: the value is the list of logits
    ``f_1 .. f_N``, of which the last is the network's own output, and ``ensemble`` makes the predictions.
    The network is ``trunk``, with its own state dict; hooks exist only while a forward pass runs.

    Args:
        trunk: the network.
        taps: names of the tapped modules, in order of execution.
        heads: one per tap.
        reweight: see ``expand_reweight``.
        rescale: whether training rescales gradients at the taps.
        output: takes logits ``(batch, classes)`` from the network's output.
        changed_in_place: those taps whose tensor a later layer overwrites; the trunk goes on with a copy of it.
    """

    def __init__(
        self,
        trunk: nn.Module,
        taps: Sequence[str],
        heads: Sequence[nn.Module],
        *,
        reweight: float | Sequence[float] = 0.5,
        rescale: bool = True,
        output: Callable[[Any], Tensor] = network_logits,
        changed_in_place: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if len(taps) != len(heads):
            raise ValueError(f"each tap needs one head; got {len(taps)} taps and {len(heads)} heads")
        self.trunk = trunk
        self.heads = nn.ModuleList(heads)
        self.taps = tuple(taps)
        self.reweight = expand_reweight(reweight, len(taps) + 1)
        self.rescale = rescale
        self.output = output
        self.changed_in_place = frozenset(changed_in_place)
        self._trunk_is_frozen = False
        self._required_gradients: list[tuple[nn.Parameter, bool]] = []

    @property
    def exits(self) -> int:
        """Number of exits N: one per tap, and the network's own output."""
        return len(self.taps) + 1

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """All exits' own logits: N tensors ``(batch, classes)``.

        Args:
            args: the network's arguments; a single tuple or dict of tensors stands for them, too.
            kwargs: the network's keyword arguments.
        """
        if len(args) == 1 and not kwargs and not isinstance(args[0], Tensor):
            args, kwargs = as_arguments(args[0])
        tapped: dict[str, Tensor] = {}
        versions: dict[str, int] = {}
        rescales = self.rescale and self.training

        def visit(path: str, tensor: Tensor) -> Tensor | None:
            if not tensor.is_inference():
                versions[path] = tensor._version
            if not rescales:
                tapped[path] = tensor
                return tensor.clone() if path in self.changed_in_place else None
            remaining = self.exits - self.taps.index(path)
            tapped[path] = rescale_gradient(tensor, 1 / remaining)
            passed_on = rescale_gradient(tapped[path], remaining - 1)
            return passed_on.clone() if path in self.changed_in_place else passed_on

        with tap_hooks(self.trunk, self.taps, visit):
            output = call_network(self.trunk, args, kwargs)
        for path in self.taps:
            if path not in tapped:
                raise UserError(f"tap {path!r} did not run in this forward pass; tap a module that always runs")
        for path, version in versions.items():
            if tapped[path]._version != version:
                raise UserError(f"a layer changes the output of tap {path!r} in place in training: tap the next module")
        mask = attention_mask(self.trunk, args, kwargs)
        logits = [run_head(head, tapped[path], mask) for path, head in zip(self.taps, self.heads, strict=True)]
        return [*logits, self.output(output)]

    def ensemble(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Predictions ``z_1 .. z_N`` of all exits from their own logits."""
        return ensemble_logits(logits, self.reweight)

    def freeze_trunk(self) -> None:
        """Train the heads alone: the trunk's parameters get no gradient, and it stays in evaluation mode.

        So do its batch statistics: ``train()`` does not reach the trunk any more. ``detach`` undoes it.
        """
        if not self._trunk_is_frozen:
            self._required_gradients = [(parameter, parameter.requires_grad) for parameter in self.trunk.parameters()]
            self._trunk_is_frozen = True
        self.trunk.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "AttachedExits":
        """Set training or evaluation mode; a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self._trunk_is_frozen:
            self.trunk.eval()
        return self

    def detach(self) -> nn.Module:
        """The trunk as it was given, with what training made of its weights."""
        for parameter, required in self._required_gradients:
            parameter.requires_grad_(required)
        if self._trunk_is_frozen:
            self._trunk_is_frozen = False
            self.trunk.train(self.training)
        self._required_gradients = []
        return self.trunk


def attach_exits(
    model: nn.Module,
    taps: Sequence[str],
    num_classes: int | None = None,
    *,
    example: Inputs,
    heads: Literal["auto"] | Sequence[nn.Module] | Callable[[torch.Size], nn.Module] = "auto",
    pool: Literal["auto"] | Pool = "auto",
    reweight: float | Sequence[float] = 0.5,
    rescale: bool = True,
    output: Callable[[Any], Tensor] = network_logits,
) -> AttachedExits:
    """Give a network exits: a head on each tapped module; its own output is the last exit.

    Args:
        model: any network; it is not copied.
        taps: names of modules as in ``model.named_modules()``, in order of execution. A module whose output is a
            tuple or a model output is represented by its first tensor.
        num_classes: number of classes; by default, and otherwise checked against, that of the network's own output.
        example: a batch of at least one input, run once in evaluation mode without gradient.
        heads: ``auto``, see ``automatic_head``; one module per tap; or a
            function from the shape of the tapped tensor to a module.
        pool: how automatic heads read tokens: the first one (``token``) or the mean (``mean``, over the call's
            ``attention_mask`` if there is one). ``auto`` takes ``token`` where the network has a parameter named
            ``cls_token`` or ``class_token``; where that token joins late, as in CaiT, choose ``mean``.
        reweight: see ``expand_reweight``.
        rescale: whether training rescales gradients at the taps.
        output: takes logits ``(batch, classes)`` from the network's output; by default its ``logits`` or else its
            first tensor.

    Raises:
        UserError: a tap that does not exist, does not run, runs more than once, is named twice or out of order, or
            whose tensor has no batch dimension; an output or a head that does not give ``(batch, classes)``.
    """
    if isinstance(taps, str) or not taps or len(set(taps)) != len(taps):
        raise UserError(f"taps must be a list of different module names; got {taps!r}")
    for path in taps:
        find_module(model, path)
    batch = batch_size(example)
    tapped, changed, result = _probe(model, taps, example)
    own = output(result)
    if list(tapped) != list(taps):
        missing = [path for path in taps if path not in tapped]
        if missing:
            raise UserError(f"tap {missing[0]!r} does not run on the example; tap a module that always runs")
        raise UserError(f"taps must follow the order of execution: {', '.join(tapped)}")
    for path, tensor in tapped.items():
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            raise UserError(f"tap {path!r} gives {tuple(tensor.shape)}, whose first dimension is not the batch {batch}")

    classes = _classes(own, batch, num_classes)
    modules = _make_heads(model, list(tapped.values()), heads, classes, pool)
    mask = attention_mask(model, *as_arguments(example))
    for (path, tensor), head in zip(tapped.items(), modules, strict=True):
        with evaluating(head), torch.no_grad():
            shape = run_head(head, tensor, mask).shape
        if shape != own.shape:
            raise UserError(f"the head of tap {path!r} gives {tuple(shape)}; it must give {tuple(own.shape)}")
    return AttachedExits(
        model, taps, modules, reweight=reweight, rescale=rescale, output=output, changed_in_place=changed
    )


def trainable_parameter_groups(exits: AttachedExits, mode: str, learning_rate: float) -> list[dict[str, Any]]:
    """Prepare one of the three ways of training, and give its parameter groups for an optimizer.

    Args:
        exits: the network; ``heads`` freezes its trunk (``AttachedExits.freeze_trunk``).
        mode: ``heads`` (the trunk is frozen, batch normalization included), ``joint`` (all alike) or ``finetune``
            (the trunk, with its own output layer, at a tenth of the learning rate).
        learning_rate: of the heads.

    Raises:
        UserError: there is no such mode.
    """
    heads, trunk = list(exits.heads.parameters()), list(exits.trunk.parameters())
    if mode == "heads":
        exits.freeze_trunk()
        return [{"params": heads, "lr": learning_rate}]
    if mode == "joint":
        return [{"params": trunk + heads, "lr": learning_rate}]
    if mode == "finetune":
        return [
            {"params": trunk, "lr": learning_rate * _FINETUNE_TRUNK_FACTOR},
            {"params": heads, "lr": learning_rate},
        ]
    raise UserError(f"there is no training mode {mode!r}; choose heads, joint or finetune")


def as_arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and the keyword arguments that a batch stands for.

    Raises:
        UserError: it is not a tensor, or a tuple or dict of tensors.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise UserError("a batch must be a tensor, a tuple of tensors or a dict of tensors")
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def call_network(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], call: Any = None) -> Any:
    """Call a network with the tensors of a batch, in the form that its ``forward`` takes.

    A dict is given as keyword arguments, a tuple as positional ones; where ``forward`` has no such parameters but takes
    a single one, as ``forward(self, batch)`` does, it gets the dict or the tuple whole.

    Args:
        network: the network.
        args: positional arguments.
        kwargs: keyword arguments.
        call: what is called in the network's place, such as its traced ``forward``.

    Raises:
        UserError: ``forward`` takes them in neither form.
    """
    signature = inspect.signature(network.forward)
    call = call or network
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        whole = dict(kwargs) if kwargs else tuple(args)
        try:
            signature.bind(whole)
        except TypeError:
            given = ", ".join(kwargs) or f"{len(args)} tensors"
            raise UserError(f"{type(network).__name__}.forward takes {signature}, the batch holds {given}") from None
        return call(whole)
    return call(*args, **kwargs)


def batch_size(inputs: Inputs) -> int:
    """Number of inputs in a batch: the first dimension of its first tensor."""
    args, kwargs = as_arguments(inputs)
    first = next(iter((*args, *kwargs.values())))
    if first.dim() == 0 or first.shape[0] == 0:
        raise UserError(f"a batch needs at least one input; the first tensor has shape {tuple(first.shape)}")
    return first.shape[0]


def attention_mask(trunk: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The call's argument ``attention_mask``, by keyword or by its place in the signature of ``trunk.forward``."""
    if "attention_mask" in kwargs or len(args) < 2:
        return kwargs.get("attention_mask")
    names = list(inspect.signature(trunk.forward).parameters)
    position = names.index("attention_mask") if "attention_mask" in names else len(args)
    return args[position] if position < len(args) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode; after it, each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _probe(model: nn.Module, taps: Sequence[str], example: Inputs) -> tuple[dict[str, Tensor], list[str], Any]:
    """The tapped tensors on the example, the taps among them that a later layer changes in place, and the output."""
    tapped: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def visit(path: str, tensor: Tensor) -> None:
        tapped[path] = tensor
        versions[path] = tensor._version

    args, kwargs = as_arguments(example)
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda]
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(set(devices)):
        for module in model.modules():
            # Dropout in place changes a tap in training only; here it is to be noticed.
            module.training = getattr(module, "inplace", False) is True
        with tap_hooks(model, taps, visit):
            output = call_network(model, args, kwargs)
    return tapped, [path for path, tensor in tapped.items() if tensor._version != versions[path]], output


def _classes(logits: Tensor, batch: int, expected: int | None) -> int:
    if logits.dim() != 2 or logits.shape[0] != batch:
        raise UserError(
            f"the network's own output has shape {tuple(logits.shape)}, but exits need (batch, classes): give "
            "output=..., a function that takes the logits from it"
        )
    if expected not in (None, logits.shape[1]):
        raise UserError(f"num_classes is {expected}, but the network's own output has {logits.shape[1]} classes")
    return logits.shape[1]


def _make_heads(
    model: nn.Module,
    tapped: Sequence[Tensor],
    heads: Literal["auto"] | Sequence[nn.Module] | Callable[[torch.Size], nn.Module],
    classes: int,
    pool: Literal["auto"] | Pool,
) -> list[nn.Module]:
    if pool not in ("auto", "token", "mean"):
        raise UserError(f"pool is {pool!r}; choose auto, token or mean")
    if heads == "auto":
        names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
        if pool == "auto":
            pool = "token" if names & {"cls_token", "class_token"} else "mean"
        made = [automatic_head(tensor.shape, classes, pool) for tensor in tapped]
    elif isinstance(heads, nn.ModuleList) or not callable(heads):
        made = list(heads)
        if len(made) != len(tapped):
            raise UserError(f"heads must have one module per tap; got {len(made)} for {len(tapped)} taps")
    else:
        made = [heads(tensor.shape) for tensor in tapped]
    return [head.to(tensor.device, tensor.dtype) for head, tensor in zip(made, tapped, strict=True)]
