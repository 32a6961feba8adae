"""Real stages out of a network with attached exits, so that stopping at an exit saves the rest (spec 2.11)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach import AttachedExits, Inputs, attention_mask, batch_size
from tenfold.systems.boosted_exits.cutting_capture import (
    CannotCut,
    Keys,
    arguments,
    capture_export,
    capture_fx,
    flatten,
)
from tenfold.systems.boosted_exits.cutting_split import Stages, split
from tenfold.systems.boosted_exits.heads import run_head, takes_mask
from tenfold.systems.boosted_exits.method import add_exit
from tenfold.systems.boosted_exits.model import EarlyExitModel, State
from tenfold.taps import tap_hooks

Method = Literal["fx", "export", "sequential", "hooks"]
METHODS: tuple[Method, ...] = ("fx", "export", "sequential", "hooks")

_RECORDED_BATCHES = (2, 5)

# Differences allowed, as a share of the largest logit or of 1; the first two in units of the data type's epsilon.
_SAME_BATCH_TOLERANCE = 100
_OTHER_BATCH_TOLERANCE = 1000  # for another batch size, kernels add in another order
_OTHER_BATCH_TOLERANCE_GPU = 1e-2  # and convolutions choose another algorithm, in TF32


@dataclass(frozen=True)
class CutReport:
    """How a network was cut, and how well the stages reproduce it.

    Attributes:
        method: what worked: ``fx``, ``export``, ``sequential`` or ``hooks``.
        failures: why the methods tried before did not work.
        difference: largest absolute difference of a logit to the uncut network, over two batch sizes.
        compaction_difference: the same where one sample leaves after every stage; 0 for ``hooks``, which takes one.
    """

    method: Method
    failures: dict[str, str] = field(default_factory=dict)
    difference: float = 0.0
    compaction_difference: float = 0.0


class CutModel(EarlyExitModel):
    """A network in stages, made by :func:`cut`: an :class:`~tenfold.systems.boosted_exits.model.EarlyExitModel`.

    The first stage takes a batch as the example was: a tensor, a tuple or a dict. The state between stages is a
    tuple whose last entry is the tapped tensor, or this tensor alone; the last stage gives the network's own logits.

    Args:
        stages: N modules.
        heads: one per stage.
        masks: per stage, the position in its state of the attention mask that its head reads, if it reads one.
        batched: per stage, which entries of its state have the batch as first dimension (one entry where the state
            is a tensor). Those lose the rows of samples that leave; the others (tensors, numbers) are passed on.
        report: how it was cut.
        reweight: see :func:`~tenfold.systems.boosted_exits.method.expand_reweight`.
        rescale: whether training rescales gradients (spec 2.5).
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        *,
        masks: Sequence[int | None],
        batched: Sequence[tuple[bool, ...]],
        report: CutReport,
        reweight: Sequence[float],
        rescale: bool,
    ) -> None:
        super().__init__(stages, heads, reweight=reweight, rescale=rescale)
        self.masks = list(masks)
        self.batched = list(batched)
        self.cut_report = report

    def run_head(self, n: int, tapped: Tensor, state: State) -> Tensor:
        """Logits ``f_n`` of head n, which reads the attention mask in the state if it reads one."""
        mask = self.masks[n]
        return super().run_head(n, tapped, state) if mask is None else run_head(self.heads[n], tapped, state[mask])


class HookStopper(CutModel):
    """Stops a network that cannot be cut: an exception thrown from the hook of a tap ends the forward pass.

    For one input at a time, in evaluation mode. :meth:`run_until` computes what an exit needs and nothing more. As
    stages (:meth:`run_stage`) it gives the same results, but each stage runs the network from its start.
    """

    def __init__(self, exits: AttachedExits, example: Inputs, report: CutReport) -> None:
        keys, tensors = flatten(example)
        heads = [*exits.heads, nn.Identity()]
        mask = _mask_position(exits, example)
        state = (True,) * (len(tensors) + 1)
        super().__init__(
            [_HookStage(exits, n, keys) for n in range(exits.exits)],
            heads,
            masks=[mask if takes_mask(head) else None for head in heads],
            batched=[state] * len(exits.taps) + [(True,)],
            report=report,
            reweight=exits.reweight,
            rescale=False,
        )
        self.uncut = exits

    def run_until(self, inputs: Inputs, leaves: Callable[[int, Tensor], bool]) -> list[Tensor]:
        """Run up to the first exit where the input leaves.

        Args:
            inputs: a batch of one.
            leaves: takes the number n of an exit, from 0, and its ensemble logits ``z_n`` ``(1, classes)``; gives
                whether the input leaves there. It is not asked at the last exit.

        Returns:
            The own logits ``f_n`` of the exits that were computed, each ``(1, classes)``.

        Raises:
            UserError: the batch is not of one input.
        """
        keys, tensors = flatten(inputs)
        _require_one(tensors)
        args, kwargs = arguments(keys, tensors)
        mask = attention_mask(self.uncut.trunk, args, kwargs)
        logits: list[Tensor] = []
        ensemble: Tensor | None = None

        def visit(path: str, tensor: Tensor) -> None:
            nonlocal ensemble
            n = len(logits)
            logits.append(run_head(self.heads[n], tensor, mask))
            ensemble = add_exit(logits[n], ensemble, self.reweight[n - 1])
            if leaves(n, ensemble):
                raise _Stop

        with suppress(_Stop), tap_hooks(self.uncut.trunk, self.uncut.taps, visit):
            logits.append(self.uncut.output(self.uncut.trunk(*args, **kwargs)))
        return logits


class _Stop(BaseException):
    """Ends a forward pass; not an ``Exception``, which a network might catch."""


class _HookStage(nn.Module):
    def __init__(self, exits: AttachedExits, n: int, keys: Keys) -> None:
        super().__init__()
        self.trunk = exits.trunk
        self.output = exits.output
        self.is_first = n == 0
        self.tap = exits.taps[n] if n < len(exits.taps) else None
        self.input_keys = keys

    def forward(self, state: State) -> State:
        tensors = flatten(state)[1] if self.is_first else state[:-1]
        _require_one(tensors)
        args, kwargs = arguments(self.input_keys, tensors)
        if self.tap is None:
            return self.output(self.trunk(*args, **kwargs))
        tapped: list[Tensor] = []

        def visit(path: str, tensor: Tensor) -> None:
            tapped.append(tensor)
            raise _Stop

        with suppress(_Stop), tap_hooks(self.trunk, [self.tap], visit):
            self.trunk(*args, **kwargs)
        return (*tensors, *tapped)


class _Copy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Output(nn.Module):
    def __init__(self, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Any) -> Tensor:
        return self.output(x)


def cut(exits: AttachedExits, example: Inputs, *, methods: Sequence[Method] = METHODS) -> CutModel:
    """Cut a network with attached exits into stages that can stop; parameters are shared, not copied.

    The network is put into evaluation mode, and the stages are for inference. Methods are tried in order, and each
    result is compared with the uncut network on two batch sizes, and again with samples leaving after every stage:

    - ``fx``: symbolic trace. Layers stay modules, so that the stages follow ``train()`` and ``eval()``; functional
      dropout is baked in as off.
    - ``export``: ``torch.export``. Evaluation mode, the device and all sizes but the batch are baked in.
    - ``sequential``: the children of an ``nn.Sequential``, nested ones included.
    - ``hooks``: no cut, an exception stops the forward pass; gives a :class:`HookStopper`, for one input at a time.

    Args:
        exits: the network.
        example: a batch like those to come: a tensor, or a tuple or dict of tensors; each tensor whose first
            dimension is that of the first one is taken to be batched. Several different inputs check more than one.
        methods: which methods to try.

    Raises:
        UserError: no method works; the message gives the reason of each.
    """
    batch_size(example)
    if not set(methods) <= set(METHODS) or not methods:
        raise UserError(f"methods of cutting are {', '.join(METHODS)}; got {list(methods)}")
    exits.eval()
    failures: dict[str, str] = {}
    for method in methods:
        try:
            return _cut_by(method, exits, example, failures)
        except Exception as error:  # tracing runs a network on stand-ins for tensors, and it may fail in any way
            failures[method] = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    reasons = "; ".join(f"{method}: {reason}" for method, reason in failures.items())
    raise UserError(f"the network cannot be cut at {', '.join(exits.taps)}; tap other modules ({reasons})")


def _cut_by(method: Method, exits: AttachedExits, example: Inputs, failures: dict[str, str]) -> CutModel:
    report = CutReport(method, dict(failures))
    if method == "hooks":
        model: CutModel = HookStopper(exits, example, report).eval()
        difference = _difference(model, exits, _rows(example, 1))
        model.cut_report = replace(report, difference=difference)
        return model
    stages = _sequential_stages(exits) if method == "sequential" else _graph_stages(method, exits, example)
    model = CutModel(
        stages.modules,
        [*exits.heads, nn.Identity()],
        masks=[*stages.kept, None],
        batched=stages.batched,
        report=report,
        reweight=exits.reweight,
        rescale=exits.rescale,
    ).eval()
    several = _rows(example, exits.exits + 1)
    model.cut_report = replace(
        report,
        difference=max(_difference(model, exits, inputs) for inputs in (several, _rows(example, 1))),
        compaction_difference=_difference(model, exits, several, compact=True),
    )
    return model


def _graph_stages(method: Method, exits: AttachedExits, example: Inputs) -> Stages:
    small, large = (_rows(example, size) for size in _RECORDED_BATCHES)
    keys, tensors = flatten(small)
    captured = capture_fx(exits, example) if method == "fx" else capture_export(exits, large)
    return split(
        captured,
        keys,
        (tensors, flatten(large)[1]),
        copied=[n for n, path in enumerate(exits.taps) if path in exits.changed_in_place],
        keep=_mask_position(exits, example),
        keep_in=[n for n, head in enumerate(exits.heads) if takes_mask(head)],
    )


def _sequential_stages(exits: AttachedExits) -> Stages:
    if type(exits.trunk) is not nn.Sequential:
        raise CannotCut(f"{type(exits.trunk).__name__} is not nn.Sequential")
    children = list(_children(exits.trunk))
    modules: list[nn.Module] = []
    start = 0
    for path in exits.taps:
        inside = [k + 1 for k, (name, _) in enumerate(children) if f"{name}.".startswith(f"{path}.")]
        if not inside:
            raise CannotCut(f"{path} lies inside a module that is not nn.Sequential")
        modules.append(nn.Sequential(*(module for _, module in children[start : inside[-1]])))
        start = inside[-1]
        if path in exits.changed_in_place:
            children.insert(start, ("", _Copy()))
    modules.append(nn.Sequential(*(module for _, module in children[start:]), _Output(exits.output)))
    return Stages(modules, [(True,)] * exits.exits, [None] * len(exits.taps))


def _children(module: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if type(child) is nn.Sequential:
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _mask_position(exits: AttachedExits, example: Inputs) -> int | None:
    """Where the attention mask stands among the flat tensors of a batch."""
    keys, tensors = flatten(example)
    mask = attention_mask(exits.trunk, *arguments(keys, tensors))
    return next((n for n, tensor in enumerate(tensors) if tensor is mask), None)


def _require_one(tensors: Sequence[Tensor]) -> None:
    if tensors[0].shape[0] != 1:
        raise UserError(f"this network stops by hooks, one input at a time; got a batch of {tensors[0].shape[0]}")


def _rows(inputs: Inputs, size: int) -> Inputs:
    """A batch of a given size from the rows of another, repeated as needed."""
    batch = batch_size(inputs)
    keys, tensors = flatten(inputs)
    rows = torch.arange(size, device=tensors[0].device) % batch
    chosen = tuple(tensor[rows] if tensor.dim() and tensor.shape[0] == batch else tensor for tensor in tensors)
    if keys is None:
        return chosen[0]
    return dict(zip(keys, chosen, strict=True)) if isinstance(keys, tuple) else chosen


@torch.no_grad()
def _difference(model: CutModel, exits: AttachedExits, inputs: Inputs, *, compact: bool = False) -> float:
    """Largest difference of the logits between the stages and the uncut network.

    Raises:
        CannotCut: it is beyond the tolerance.
    """
    expected = exits(inputs)
    rows = torch.arange(batch_size(inputs), device=expected[0].device)
    state: State = inputs
    largest = 0.0
    for n in range(model.exits):
        state, logits = model.run_stage(n, state)
        reference = expected[n][rows]
        difference = (logits - reference).abs().max().item()
        allowed = torch.finfo(reference.dtype).eps * (_OTHER_BATCH_TOLERANCE if compact else _SAME_BATCH_TOLERANCE)
        if compact and reference.is_cuda:
            allowed = max(allowed, _OTHER_BATCH_TOLERANCE_GPU)
        if not difference <= allowed * max(1.0, reference.abs().max().item()):
            what = "after samples have left" if compact else f"at a batch of {len(rows)}"
            raise CannotCut(f"exit {n + 1} differs by {difference:.1e} from the uncut network {what}")
        largest = max(largest, difference)
        if compact and n + 1 < model.exits:
            staying = torch.arange(len(rows) - 1, 0, -1, device=rows.device)  # one leaves, the others change places
            rows = rows[staying]
            state = _keep_rows(state, model.batched[n], staying)
    return largest


def _keep_rows(state: State, batched: tuple[bool, ...], rows: Tensor) -> State:
    if isinstance(state, Tensor):
        return state[rows]
    return tuple(entry[rows] if has_rows else entry for entry, has_rows in zip(state, batched, strict=True))
