"""Serving that really stops: stages run on the images that have not left yet.


    for n in stages:
        state, f = model.run_stage(n, state)            # carried rows only
        z = add_exit(f, z, r[n-1])
        leaving = leaves(confidence(z), thresholds[n])   # the same functions as solver and simulation
        write z of the leaving rows to their places; gather the others

Each image's answer is the same whatever else is in its batch: the same logits to 1e-5, the same exit except where its
confidence is within 1e-6 of the threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.attach.cut_model import HookStopper
from tenfold.systems.boosted_exits.method import add_exit, confidence, ensemble_logits, leaves
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel, State
from tenfold.systems.boosted_exits.policies.exit_policy import assign_exits, require_numbers


@dataclass(frozen=True)
class ExitOutputs:
    """Answers of an early-exit network.

    Attributes:
        logits: ``(batch, classes)`` ensemble logits ``z_n`` of the exit that each input took.
        exits: ``(batch,)`` int64, that exit, counted from 0.
        stage_sizes: rows on which each stage ran, padding included; 0 for a stage that was not needed.
    """

    logits: Tensor
    exits: Tensor
    stage_sizes: tuple[int, ...]


class EarlyExitRunner:
    """Runs an early-exit network on batches, each stage on the inputs that are still open.

    Args:
        model: the stages, in eval mode.
        thresholds: ``(exits,)`` confidences from which an input leaves; the last exit takes whoever is left.
        min_keep: rows are gathered only if at least this share of the carried ones has left, in [0, 1]; rows that have
            left and are still carried cost time, gathering costs a copy.
        buckets: batch sizes to which the carried rows are padded, increasing; for CUDA graphs and compiled stages,
            which want few shapes. Above the largest nothing is padded.

    Raises:
        UserError: the number of thresholds is not the number of exits, or one is NaN.
        ValueError: ``min_keep`` or ``buckets`` out of range; batch normalization in training mode, where an answer
            depends on the whole batch.
    """

    def __init__(
        self,
        model: EarlyExitModel,
        thresholds: Sequence[float],
        *,
        min_keep: float = 0.1,
        buckets: Sequence[int] | None = None,
    ) -> None:
        check_thresholds(model, thresholds)
        require_eval(model)
        if not 0 <= min_keep <= 1:
            raise ValueError(f"min_keep must lie in [0, 1]; got {min_keep}")
        if buckets is not None and (not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1):
            raise ValueError(f"buckets must be increasing batch sizes; got {buckets}")
        self.model = model
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.min_keep = min_keep
        self.buckets = tuple(buckets or ())

    @torch.inference_mode()
    def __call__(self, x: State) -> ExitOutputs:
        """Answer a batch.

        Args:
            x: the network's input, a tensor or a nest of tensors, batch first.

        Raises:
            UserError: the batch holds no input, and the network stops by hooks.
            ValueError: batch normalization is in training mode, where an answer depends on the whole batch.
        """
        if self.model.training:
            require_eval(self.model)
        if isinstance(self.model, HookStopper):
            return self._one_by_one(self.model, x)
        size = count_rows(x)
        if size == 1 and not self.buckets:
            return self._single(x)
        state, rows, gone = self._first_rows(x, size)
        older: Tensor | None = None
        logits = exits = None
        sizes = [0] * self.model.exits
        for n, threshold in enumerate(self.thresholds):
            state, f = self.model.run_stage(n, state)
            sizes[n] = len(f)
            older = add_exit(f, older, self.model.reweight[n - 1])
            if logits is None or exits is None:
                logits = older.new_empty(size, older.shape[-1])
                exits = torch.empty(size, dtype=torch.int64, device=older.device)
                rows, gone = rows.to(older.device), gone.to(older.device)
            last = n == self.model.exits - 1
            leaving = ~gone if last else leaves(confidence(older), threshold) & ~gone
            leavers = leaving.nonzero().squeeze(1)
            if len(leavers):
                places = rows[leavers]
                logits[places] = older[leavers]
                exits[places] = n
                gone |= leaving
            if last or not len(leavers):
                continue
            staying = (~gone).nonzero().squeeze(1)
            if not len(staying):
                break
            carried = self._bucket(len(staying))
            if len(gone) - carried >= max(self.min_keep * len(gone), 1):
                staying, gone = _pad(staying, carried)
                state = select_rows(state, staying, batched_leaves(self.model, n))
                older, rows = older.index_select(0, staying), rows.index_select(0, staying)
        assert logits is not None and exits is not None
        return ExitOutputs(logits, exits, tuple(sizes))

    def _single(self, x: State) -> ExitOutputs:
        """One input: nothing to gather, so nothing but the stages and the rule."""
        state, older = x, None
        sizes = [0] * self.model.exits
        for n, threshold in enumerate(self.thresholds):
            state, f = self.model.run_stage(n, state)
            older = add_exit(f, older, self.model.reweight[n - 1])
            sizes[n] = 1
            if n == self.model.exits - 1 or leaves(confidence(older), threshold):
                break
        assert older is not None
        return ExitOutputs(older, torch.tensor([n], device=older.device), tuple(sizes))

    def _one_by_one(self, model: HookStopper, x: State) -> ExitOutputs:
        """For networks that could not be cut: each input alone, the network broken off at its exit."""
        if count_rows(x) == 0:
            raise UserError("this network stops by hooks, one input at a time; the batch holds none")
        answers: list[tuple[Tensor, int]] = []
        for row in range(count_rows(x)):
            one = select_rows(x, torch.tensor([row]), None)
            taken = model.run_until(one, lambda n, z: bool(leaves(confidence(z), self.thresholds[n])))
            answers.append((ensemble_logits(taken, model.reweight[: len(taken)])[-1], len(taken) - 1))
        exits = torch.tensor([exit for _, exit in answers], dtype=torch.int64)
        sizes = tuple(int((exits >= n).sum()) for n in range(model.exits))
        return ExitOutputs(torch.cat([z for z, _ in answers]), exits, sizes)

    def _first_rows(self, x: State, size: int) -> tuple[State, Tensor, Tensor]:
        """The input, padded; the place of each carried row in the batch; which carried rows have left."""
        rows, gone = _pad(torch.arange(size), self._bucket(size))
        return (x if len(rows) == size else select_rows(x, rows, None)), rows, gone

    def _bucket(self, rows: int) -> int:
        return next((bucket for bucket in self.buckets if bucket >= rows), rows) if rows else 0


def _pad(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Row numbers repeated up to ``size``; the repetitions count as gone, so that nothing is written for them."""
    padding = size - len(rows)
    gone = torch.arange(size, device=rows.device) >= len(rows)
    return (torch.cat([rows, rows[:1].expand(padding)]) if padding else rows), gone


def simulate(model: EarlyExitModel, x: State, thresholds: Sequence[float]) -> ExitOutputs:
    """What ``EarlyExitRunner`` answers, computed in full: every stage on every input.

    Args:
        model: the stages, in eval mode.
        x: see ``EarlyExitRunner``.
        thresholds: see ``EarlyExitRunner``.
    """
    check_thresholds(model, thresholds)
    require_eval(model)
    with torch.inference_mode():
        ensembles = torch.stack(model.ensemble(model(x)), dim=1)
        exits = assign_exits(torch.stack([confidence(z) for z in ensembles.unbind(1)], dim=1), thresholds)
        chosen = ensembles[torch.arange(len(exits), device=exits.device), exits]
    return ExitOutputs(chosen, exits, (len(exits),) * model.exits)


def check_thresholds(model: EarlyExitModel, thresholds: Sequence[float]) -> None:
    """Refuse a number of thresholds that is not the number of exits, and those that are no numbers (``UserError``)."""
    if len(thresholds) != model.exits:
        raise UserError(f"{len(thresholds)} thresholds do not fit {model.exits} exits")
    require_numbers(thresholds)


def require_eval(model: nn.Module) -> None:
    """Refuse batch normalization in training mode (``ValueError``): answers would depend on the batch."""
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        raise ValueError("the network is in training mode, where an answer depends on its batch: call .eval() first")


def count_rows(state: State) -> int:
    """Size of the batch: of the first axis of the first tensor."""
    return len(tree_flatten(state)[0][0])


def batched_leaves(model: EarlyExitModel, n: int) -> Sequence[bool] | None:
    """Which tensors of the state after stage n have a batch axis; ``None`` if all have."""
    flags = getattr(model, "batched", None)
    return None if flags is None else flags[n]


def select_rows(state: State, rows: Tensor, batched: Sequence[bool] | None) -> State:
    """The given rows of every batched tensor of a state; what is not batched is passed on.

    Args:
        state: a tensor or a nest of tensors.
        rows: ``(selected,)`` int64.
        batched: for each tensor of the nest, in order, whether it has a batch axis; all have where ``None``.
    """
    values, shape = tree_flatten(state)
    flags = [isinstance(value, Tensor) for value in values] if batched is None else batched
    chosen = [
        value.index_select(0, rows.to(value.device)) if flag else value
        for value, flag in zip(values, flags, strict=True)
    ]
    return tree_unflatten(chosen, shape)
