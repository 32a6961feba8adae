"""A mask: the chosen entries of each parameter; and choosing exactly the best k of them.

A threshold at a percentile would choose *everything* where more scores are zero than are to be left out (unused
embeddings). Here exactly the k largest positive scores are chosen, ties by position; where fewer are positive, fewer
are chosen, and ``Mask.chosen`` says so.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.sparse.parameters import index_dtype, matches
from tenfold.training.parallel import world_size

Granularity = Literal["entry", "row", "column", "head", "tensor"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
HEAD_ROWS = ("*query*", "*key*", "*value*", "*q_proj*", "*k_proj*", "*v_proj*", "*in_proj*", "*.qkv.*")
HEAD_COLUMNS = ("*attention.output.dense.weight", "*out_proj.weight", "*o_proj.weight", "*attn.proj.weight")


@dataclass(frozen=True)
class Mask:
    """Chosen entries, and how they were chosen.

    Attributes:
        entries: for each parameter with a chosen entry, their flat logical positions ``(k_t,)``, sorted, int32 where
            the tensor has fewer than 2^31 entries.
        shapes: shape of each of these parameters.
        candidates: entries that could have been chosen.
        wanted: entries that were to be chosen; more than ``chosen`` where too few had a positive score.
        about: plain values that tell how: criterion, granularity, examples, seed.
    """

    entries: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    candidates: int
    wanted: int
    about: dict[str, str | int | float] = field(default_factory=dict)

    @property
    def chosen(self) -> int:
        """Number of chosen entries."""
        return sum(index.numel() for index in self.entries.values())

    @property
    def fraction(self) -> float:
        """Share of the candidates that is chosen."""
        return self.chosen / self.candidates if self.candidates else 0.0

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and positions: equal masks have equal hashes, on every machine."""
        digest = hashlib.sha256()
        for name in sorted(self.entries):
            digest.update(f"{name}{list(self.shapes[name])}".encode())
            digest.update(self.entries[name].to("cpu", torch.int64).numpy().tobytes())
        return digest.hexdigest()

    def dense(self, name: str) -> Tensor:
        """The chosen entries of one parameter as a boolean tensor of its shape."""
        flags = torch.zeros(self.shapes[name], dtype=torch.bool).view(-1)
        flags[self.entries[name].long().cpu()] = True
        return flags.view(self.shapes[name])

    def check(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the mask names.

        Raises:
            UserError: the model lacks one, or has it in another shape.
        """
        own = dict(model.named_parameters(remove_duplicate=False))
        for name, shape in self.shapes.items():
            if name not in own:
                raise UserError(f"the mask is of another model: this one has no parameter {name!r}")
            if tuple(own[name].shape) != shape:
                raise UserError(
                    f"the mask is of another model: {name!r} has the shape {tuple(own[name].shape)}, not {shape}"
                )
        return {name: own[name] for name in self.shapes}


def top_entries(
    scores: Mapping[str, Tensor],
    count: int,
    *,
    granularity: Granularity = "entry",
    per_tensor: bool = False,
    heads: int | None = None,
    about: Mapping[str, str | int | float] | None = None,
) -> Mask:
    """The entries with the largest positive scores: exactly ``count``, or as many as are positive.

    Coarser granularities rank groups by the mean score of their entries and take whole groups, best first, as long as
    the next one fits into ``count``.

    Args:
        scores: by parameter, of its shape, not negative.
        count: entries to choose in all.
        granularity: ``entry``; ``row`` (all entries with the same first index), ``column`` (the same second index; a
            vector is one column); ``head`` (rows of an attention head in query, key and value weights, its columns in
            the output projection; other parameters are left out); ``tensor``.
        per_tensor: the same share of every tensor, instead of one ranking over all.
        heads: attention heads, for ``head``.
        about: kept in the mask.

    Raises:
        UserError: nothing is chosen, or a setting makes no sense.
    """
    total = sum(value.numel() for value in scores.values())
    if not 0 < count <= total:
        raise UserError(f"choose between 1 and {total:,} entries; got {count:,}")
    if granularity not in GRANULARITIES:
        raise UserError(f"granularity is one of {', '.join(GRANULARITIES)}; got {granularity!r}")
    if granularity == "head":
        if not heads:
            raise UserError("granularity 'head' needs the number of attention heads: heads=12")
        scores = {name: value for name, value in scores.items() if matches(name, (*HEAD_ROWS, *HEAD_COLUMNS))}
    parts = [scores] if not per_tensor else [{name: value} for name, value in scores.items()]
    entries: dict[str, Tensor] = {}
    for part in parts:
        size = sum(value.numel() for value in part.values())
        share = count if not per_tensor else round(count * size / total)
        if share:
            chosen = (
                _best_entries(part, share) if granularity == "entry" else _best_groups(part, share, granularity, heads)
            )
            entries |= chosen
    if not any(index.numel() for index in entries.values()):
        raise UserError(
            "the mask chooses nothing: no score is positive, or no group fits; choose a larger share, or examples on "
            "which the candidates matter"
        )
    return Mask(
        entries={name: index for name, index in entries.items() if index.numel()},
        shapes={name: tuple(scores[name].shape) for name, index in entries.items() if index.numel()},
        candidates=total,
        wanted=count,
        about={"granularity": granularity, **(about or {})},
    )


def _best_entries(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Exactly the ``count`` largest positive scores over all tensors; among equals the first."""
    positive = torch.cat([value.detach().flatten()[value.detach().flatten() > 0] for value in scores.values()])
    if positive.numel() <= count:
        return {name: _positions(value > 0, value.numel()) for name, value in scores.items()}
    threshold = torch.topk(positive, count, sorted=False).values.min()
    left = count - int((positive > threshold).sum())  # for those equal to the threshold
    entries = {}
    for name, value in scores.items():
        flat = value.detach().flatten()
        chosen = flat > threshold
        if left:
            ties = (flat == threshold).nonzero().flatten()[:left]
            chosen[ties] = True
            left -= ties.numel()
        entries[name] = _positions(chosen, value.numel())
    return entries


def _positions(chosen: Tensor, size: int) -> Tensor:
    return chosen.flatten().nonzero().flatten().to(index_dtype(size))


def _best_groups(
    scores: Mapping[str, Tensor], count: int, granularity: Granularity, heads: int | None
) -> dict[str, Tensor]:
    """Whole groups, best mean score first, while the next one fits."""
    labels = {name: _groups(name, value.shape, granularity, heads) for name, value in scores.items()}
    means, sizes = [], []
    for name, value in scores.items():
        groups = labels[name].to(value.device).flatten()
        number = int(groups.max()) + 1
        size = torch.bincount(groups, minlength=number)
        means.append(
            value.detach().flatten().double().new_zeros(number).index_add_(0, groups, value.detach().flatten().double())
            / size
        )
        sizes.append(size)
    mean, size = torch.cat(means), torch.cat(sizes)
    order = torch.argsort(mean, descending=True, stable=True)
    fits = (size[order].cumsum(0) <= count) & (mean[order] > 0)
    kept = torch.zeros_like(mean, dtype=torch.bool)
    kept[order[fits]] = True
    entries, start = {}, 0
    for name, value in scores.items():
        number = int(labels[name].max()) + 1
        own = kept[start : start + number][labels[name].to(value.device).flatten()]
        entries[name] = _positions(own, value.numel())
        start += number
    return entries


def _groups(name: str, shape: Sequence[int], granularity: Granularity, heads: int | None) -> Tensor:
    """Number of the group of each entry, of the tensor's shape."""
    if granularity == "tensor" or not shape:
        return torch.zeros(tuple(shape), dtype=torch.long)
    axis = 0
    if granularity == "column" or (granularity == "head" and matches(name, HEAD_COLUMNS)):
        if len(shape) == 1:
            return torch.zeros(tuple(shape), dtype=torch.long)
        axis = 1
    numbers = torch.arange(shape[axis])
    if granularity == "head":
        assert heads is not None
        thirds = 3 if matches(name, ("*in_proj*", "*.qkv.*")) else 1  # query, key and value in one weight
        if shape[axis] % (heads * thirds):
            raise UserError(f"{name!r} has {shape[axis]} channels, which {heads} heads do not share evenly")
        numbers = numbers // (shape[axis] // (heads * thirds))
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return numbers.view(view).expand(tuple(shape)).contiguous()


def same_on_all_ranks(mask: Mask) -> Mask:
    """Rank 0's mask on every rank; outside a process group the mask itself.

    Raises:
        UserError: the ranks end with different masks.
    """
    if world_size() == 1:
        return mask
    box: list[Mask | None] = [mask]
    dist.broadcast_object_list(box, src=0)
    shared = box[0]
    assert shared is not None
    hashes: list[str] = [""] * world_size()
    dist.all_gather_object(hashes, shared.sha256)
    if len(set(hashes)) > 1:
        raise UserError("the processes hold different masks: give all of them the same model and settings")
    return shared
