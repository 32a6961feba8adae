"""Real stages out of a network with attached exits, so that stopping at an exit saves the rest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach.attach_exits import AttachedExits, Inputs, batch_size
from tenfold.systems.boosted_exits.attach.capture import CannotCut, capture_export, capture_fx, flatten
from tenfold.systems.boosted_exits.attach.cut_model import CutModel, CutReport, HookStopper, Method, mask_position
from tenfold.systems.boosted_exits.attach.heads import takes_mask
from tenfold.systems.boosted_exits.attach.split import Stages, split
from tenfold.systems.boosted_exits.networks.early_exit_model import State

METHODS: tuple[Method, ...] = ("fx", "export", "sequential", "hooks")

_RECORDED_BATCHES = (2, 5)

# Differences allowed, as a share of the largest logit or of 1; the first two in units of the data type's epsilon.
_SAME_BATCH_TOLERANCE = 100
_OTHER_BATCH_TOLERANCE = 1000  # for another batch size, kernels add in another order
_OTHER_BATCH_TOLERANCE_GPU = 1e-2  # and convolutions choose another algorithm, in TF32


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
    - ``hooks``: no cut, an exception stops the forward pass; gives a ``HookStopper``, for one input at a time.

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
        keep=mask_position(exits, example),
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
