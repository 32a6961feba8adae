"""Several processes as one: ranks, rows gathered from all of them, batch normalization over the global batch.

Processes are started by Lightning (``--trainer.devices``), torchrun or SLURM; nothing here starts any. Outside a
process group every function is the plain single-process case.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree


def rank() -> int:
    """Rank of the calling process, 0 where there is only one; known before the process group exists, too."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def world_size() -> int:
    """Number of processes in the process group, 1 outside one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_finite(value: Tensor) -> bool:
    """Whether ``value`` is finite on every rank; all ranks get the same answer, so that all stop together."""
    finite = torch.isfinite(value).all().float()
    if world_size() > 1:
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite.item())


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of equal-shaped tensors over all ranks, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def wait_for_all_ranks() -> None:
    """Return when every rank has come here, so that all see what rank 0 wrote before."""
    if world_size() > 1:
        dist.barrier()


def total_over_ranks(count: int) -> int:
    """Sum of an integer over all ranks."""
    if world_size() == 1:
        return count
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(count, device=device)
    dist.all_reduce(total)
    return int(total)


def gather_rows(rows: Tensor, indices: Tensor, total: int) -> Tensor:
    """Put the rows that each rank computed back into one tensor, the same on every rank.

    Args:
        rows: ``(own rows, ...)`` what this rank computed.
        indices: ``(own rows,)`` int64 position of each of them, disjoint between ranks.
        total: number of rows of all ranks together.

    Returns:
        ``(total, ...)`` on the device of ``rows``.
    """
    merged = rows.new_zeros((total, *rows.shape[1:]))
    merged[indices] = rows
    if world_size() > 1:
        as_sum = merged.to(torch.uint8) if merged.dtype == torch.bool else merged
        dist.all_reduce(as_sum)  # every row has one owner and is zero elsewhere
        merged = as_sum.to(merged.dtype)
    return merged


@torch.no_grad()
def compute_rows(
    compute: Callable[[Any], Tensor], batches: Iterable[tuple[Any, Tensor, Tensor]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a function gives for all rows, each rank computing its share of them.

    Args:
        compute: maps a batch on ``device`` to ``(batch, ...)``.
        batches: this rank's ``(inputs, labels, indices)``; inputs are a tensor, or a tuple or dict of tensors.
        device: where it computes.

    Returns:
        The outputs ``(rows, ...)`` and the labels ``(rows, ...)`` in order, on the CPU, the same on every rank.
    """
    outputs, labels, indices = [], [], []
    for inputs, truth, rows in batches:
        outputs.append(compute(pytree.tree_map(lambda value: value.to(device), inputs)))
        labels.append(truth)
        indices.append(rows)
    places = torch.cat(indices).to(device)
    total = total_over_ranks(len(places))
    return (
        gather_rows(torch.cat(outputs), places, total).cpu(),
        gather_rows(torch.cat(labels).to(device), places, total).cpu(),
    )


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _global_batch_forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, not norm.track_running_stats, eps=norm.eps
        )
    axes = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    count = x.numel() // x.shape[1] * world_size()
    mean = _SumOverRanks.apply(x.sum(axes)) / count
    centred = x - mean.view(shape)
    variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach(), momentum)
            norm.running_var.lerp_(variance.detach() * (count / max(count - 1, 1)), momentum)
    normalized = centred * torch.rsqrt(variance + norm.eps).view(shape)
    return normalized * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else normalized


@contextmanager
def global_batch_norm(module: nn.Module) -> Iterator[None]:
    """While active, the batch normalizations of ``module`` see the batch of all ranks, as one process would.

    For processes on CPU, where torch's ``SyncBatchNorm`` does not run. Ranks must hold equal shares of the batch.
    Only the layers' ``forward`` is replaced: parameters, buffers and names stay.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)] if world_size() > 1 else []
    for layer in layers:
        layer.forward = MethodType(_global_batch_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
