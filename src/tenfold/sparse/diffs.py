"""Diffs on a model: taken, applied, reverted, switched and composed, each bit for bit.

A diff holds values. Applying keeps the values that it overwrites and reverting writes them back: nothing is added or
subtracted, so nothing is rounded.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.sparse.diff_files import Diff, load_diff, raw_bytes
from tenfold.sparse.masks import Mask
from tenfold.sparse.parameters import index_dtype, matches, put, take, unique_parameters

Overlap = Literal["last", "sum", "mean"]


Model = nn.Module | Mapping[str, Tensor]
"""A module, or a state dict, such as a file of weights."""


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    if isinstance(model, Mapping):
        return dict(model)
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)


@dataclass
class Snapshot:
    """The base, as far as a training with a mask can change it: what a diff is taken against and reverted to.

    Attributes:
        positions: positions ``(k_t,)`` of each masked parameter.
        values: the base's values there.
        whole: copies of densely trained parameters and of all buffers.
    """

    positions: dict[str, Tensor]
    values: dict[str, Tensor]
    whole: dict[str, Tensor]

    def extend(self, model: nn.Module, mask: Mask) -> None:
        """Take in the entries of a further mask, which the model still holds as the base does."""
        named = mask.check(model)
        for name, index in mask.entries.items():
            if name in self.positions:
                known = self.positions[name].long()
                fresh = index.to(known)[~torch.isin(index.to(known), known)]
                merged, order = torch.cat([known, fresh]).sort()
                self.values[name] = torch.cat([self.values[name], take(named[name], fresh)])[order]
                self.positions[name] = merged.to(index.dtype)
            else:
                self.positions[name] = index.to(named[name].device)
                self.values[name] = take(named[name], self.positions[name])


def take_snapshot(model: nn.Module, mask: Mask | None = None, dense: Sequence[str] = ()) -> Snapshot:
    """Remember a base before it is trained: chosen entries, dense parameters and buffers, not the whole model.

    Args:
        model: the base.
        mask: entries that will be trained.
        dense: patterns of names that will be trained whole.
    """
    whole = {name: _copy(value) for name, value in unique_parameters(model).items() if matches(name, dense)}
    whole |= {name: _copy(buffer) for name, buffer in model.named_buffers()}
    snapshot = Snapshot({}, {}, whole)
    if mask is not None:
        snapshot.extend(model, mask)
    return snapshot


def take_diff(model: nn.Module, base: Snapshot, *, dense: Sequence[str] = (), mask: Mask | None = None) -> Diff:
    """What training changed, as a diff.

    Args:
        model: as trained.
        base: from ``take_snapshot``, before training.
        dense: patterns of names that were trained whole; they are stored whole, and so are buffers that changed.
        mask: tells the diff how its entries were chosen.
    """
    own = tensors_of(model)
    parameters = dict(model.named_parameters())
    whole = {
        name: _copy(own[name])
        for name, before in base.whole.items()
        if (name in parameters and matches(name, dense))
        or (name not in parameters and not torch.equal(own[name], before))
    }
    return Diff(
        positions=dict(base.positions),
        values={name: take(own[name], index) for name, index in base.positions.items()},
        shapes={name: tuple(own[name].shape) for name in base.positions},
        whole=whole,
        base=fingerprint(base.positions, base.values, {name: tuple(own[name].shape) for name in base.positions}),
        about=dict(mask.about) | {"chosen": mask.chosen, "candidates": mask.candidates} if mask else {},
    )


def diff_states(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], most: float = 0.5) -> Diff:
    """The difference of two state dicts, such as a published model and its fine-tuned version, bit for bit.

    Args:
        base: the weights before.
        tuned: the weights after; tensors that the base has not, or has in another shape, cannot be told apart.
        most: tensors of which a larger share of the entries differs are stored whole.

    Raises:
        UserError: the two have not the same tensors.
    """
    for name in {**base, **tuned}:
        if name not in base or name not in tuned or base[name].shape != tuned[name].shape:
            raise UserError(f"{name!r} is not in both models with one shape: a diff needs the same network")
        if base[name].dtype != tuned[name].dtype:
            raise UserError(f"{name!r} is {base[name].dtype} in one model and {tuned[name].dtype} in the other")
    positions, values, before, whole = {}, {}, {}, {}
    for name, value in tuned.items():
        old, new = base[name].detach().cpu().flatten(), value.detach().cpu().flatten()
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[new.element_size()]
        index = (old.view(bits) != new.view(bits)).nonzero().flatten()
        if index.numel() > most * new.numel() or not new.dim():
            whole[name] = value
        elif index.numel():
            positions[name] = index.to(index_dtype(new.numel()))
            values[name], before[name] = new[index], old[index]
    shapes = {name: tuple(tuned[name].shape) for name in positions}
    return Diff(positions, values, shapes, whole, fingerprint(positions, before, shapes), {"origin": "two models"})


def save_diff(
    model: nn.Module, base: Snapshot, path: str | Path, *, dense: Sequence[str] = (), mask: Mask | None = None
) -> Path:
    """Write what training changed to a file.

    Args:
        model: see ``take_diff``.
        base: see there.
        path: the file.
        dense: see ``take_diff``.
        mask: see there.
    """
    return take_diff(model, base, dense=dense, mask=mask).save(path)


def fingerprint(
    positions: Mapping[str, Tensor], values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Hash over names, shapes, dtypes, positions and the base's values there."""
    digest = hashlib.sha256()
    for name in sorted(positions):
        digest.update(f"{name}{list(shapes[name])}{values[name].dtype}".encode())
        digest.update(raw_bytes(positions[name].to("cpu", torch.int64)))
        digest.update(raw_bytes(values[name]))
    return digest.hexdigest()


def check_base(model: Model, diff: Diff) -> dict[str, Tensor]:
    """The model's tensors that a diff writes, if it is the base of the diff.

    Raises:
        UserError: a tensor is missing or has another shape or dtype, or the model's values are not the base's.
    """
    own = tensors_of(model)
    for name, shape in [*diff.shapes.items(), *((name, tuple(value.shape)) for name, value in diff.whole.items())]:
        if name not in own:
            raise UserError(f"the diff is for another base: this model has no {name!r}")
        value = diff.values[name] if name in diff.values else diff.whole[name]
        if tuple(own[name].shape) != shape or own[name].dtype != value.dtype:
            raise UserError(
                f"the diff is for another base: {name!r} is {tuple(own[name].shape)} {own[name].dtype} here and "
                f"{shape} {value.dtype} there"
            )
    held = {name: take(own[name], index.to(own[name].device)) for name, index in diff.positions.items()}
    if fingerprint(diff.positions, held, diff.shapes) != diff.base:
        raise UserError(
            "the diff is for another base: the model's values at the diff's entries are not those it was trained from "
            "(revert another diff first, or load the right base)"
        )
    return own


class AppliedDiff:
    """A diff in a model; reverts when a ``with`` block ends, or by ``revert``. Made by ``apply_diff``.

    Args:
        model: the base.
        diff: what is applied.
        own: the model's tensors by name, checked.
    """

    def __init__(self, model: Model, diff: Diff, own: Mapping[str, Tensor]) -> None:
        self.model, self.diff = model, diff
        self._targets = [(own[name], index.to(own[name].device, torch.int64), diff.values[name].to(own[name].device))
                         for name, index in diff.positions.items()]  # fmt: skip
        self._before = [take(target, index) for target, index, _ in self._targets]
        self._whole = [(own[name], value.to(own[name].device)) for name, value in diff.whole.items()]
        self._whole_before = [_copy(target) for target, _ in self._whole]
        self.applied = False

    @torch.no_grad()
    def apply(self) -> "AppliedDiff":
        """Write the diff's values; nothing where they are in already."""
        if not self.applied:
            for target, index, values in self._targets:
                put(target, index, values)
            for target, value in self._whole:
                target.detach().copy_(value)
            self.applied = True
        return self

    @torch.no_grad()
    def revert(self) -> None:
        """Write the base's values back, bit for bit; nothing where they are in already."""
        if self.applied:
            for (target, index, _), before in zip(self._targets, self._before, strict=True):
                put(target, index, before)
            for (target, _), before in zip(self._whole, self._whole_before, strict=True):
                target.detach().copy_(before)
            self.applied = False

    def __enter__(self) -> "AppliedDiff":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.revert()


def apply_diff(model: Model, diff: Diff | str | Path) -> AppliedDiff:
    """Put a diff into its base, in place.

    Args:
        model: the base, with the weights that the diff was trained from; a module, or a state dict.
        diff: the diff, or its file.

    Returns:
        What reverts it; also usable as ``with apply_diff(model, path): ...``.

    Raises:
        UserError: the file is damaged, or the diff is for another base; the model is as before.
    """
    found = diff if isinstance(diff, Diff) else load_diff(diff)
    return AppliedDiff(model, found, check_base(model, found)).apply()


class DiffBank:
    """Many diffs on one base in memory, switched in place: one encoder, dozens of customers.

    Args:
        model: the base.

    Example:
        >>> bank = DiffBank(model)  # doctest: +SKIP
        >>> bank.add("legal", "legal.sft.safetensors")  # doctest: +SKIP
        >>> bank.switch("legal")  # doctest: +SKIP
        >>> bank.switch(None)  # the base again, bit for bit  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: str | None = None
        self._diffs: dict[str, AppliedDiff] = {}

    def __len__(self) -> int:
        return len(self._diffs)

    def add(self, name: str, diff: Diff | str | Path) -> None:
        """Check a diff against the base and keep it.

        Raises:
            UserError: the name is taken, the file is damaged, or the diff is for another base.
        """
        if name in self._diffs:
            raise UserError(f"the bank already has a diff {name!r}")
        found = diff if isinstance(diff, Diff) else load_diff(diff)
        active = self.active
        self.switch(None)  # diffs are checked against the base, and remember its values
        try:
            self._diffs[name] = AppliedDiff(self.model, found, check_base(self.model, found))
        finally:
            self.switch(active)

    def switch(self, name: str | None) -> None:
        """Make one diff the active one; ``None`` for the base.

        Raises:
            UserError: the bank has no such diff.
        """
        if name is not None and name not in self._diffs:
            raise UserError(f"the bank has no diff {name!r}; it has: {', '.join(self._diffs) or 'none'}")
        if name == self.active:
            return
        if self.active is not None:
            self._diffs[self.active].revert()
        if name is not None:
            self._diffs[name].apply()
        self.active = name


def compose(model: nn.Module, diffs: Sequence[Diff], overlap: Overlap = "last") -> Diff:
    """One diff from several on the same base.

    Entries that only one of them changes are taken as they are, exactly. Where several change an entry, ``last`` takes
    the last one's value, ``sum`` adds their differences to the base (as composable sparse fine-tuning does; rounded),
    ``mean`` averages their values.

    Args:
        model: the base, for its values.
        diffs: at least one.
        overlap: what happens to entries that several diffs change. Tensors that are stored whole are always the last
            one's.

    Raises:
        UserError: a diff is for another base, or there is none.
    """
    if not diffs:
        raise UserError("composing needs at least one diff")
    if overlap not in ("last", "sum", "mean"):
        raise UserError(f"overlap is last, sum or mean; got {overlap!r}")
    own = {}
    for diff in diffs:
        own = check_base(model, diff)
    positions, values, before = {}, {}, {}
    shapes = {name: shape for diff in diffs for name, shape in diff.shapes.items()}
    for name in shapes:
        parts = [
            (diff.positions[name].long().cpu(), diff.values[name].cpu()) for diff in diffs if name in diff.positions
        ]
        union, place = torch.cat([index for index, _ in parts]).unique(return_inverse=True)
        stacked = torch.cat([value for _, value in parts])
        base = take(own[name], union.to(own[name].device)).cpu()
        last = torch.empty_like(base)
        offset = 0
        for index, value in parts:
            last[place[offset : offset + len(index)]] = value
            offset += len(index)
        if overlap != "last":
            times = torch.bincount(place, minlength=len(union))
            added = torch.zeros(len(union), dtype=torch.float64).index_add_(
                0, place, (stacked.double() - base.double()[place])
            )
            several = base.double() + (added if overlap == "sum" else added / times)
            last = torch.where(times > 1, several.to(base.dtype), last)
        positions[name] = union.to(index_dtype(own[name].numel()))
        values[name], before[name] = last, base
    return Diff(
        positions=positions,
        values=values,
        shapes=shapes,
        whole={name: value for diff in diffs for name, value in diff.whole.items()},
        base=fingerprint(positions, before, shapes),
        about={"composed": len(diffs), "overlap": overlap},
    )
