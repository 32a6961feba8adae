"""Batches across requests: a queue per stage, filled with whatever inputs have come that far.

Inputs that stay when others leave make small batches, and small batches are slow. Here a stage waits until enough
inputs of any request have reached it, or until the oldest of them may not wait longer:

    submit ──> queue 1 ──> stage 1 ──> queue 2 ──> stage 2 ──> ...
                              └─ leaves: the request's future   └─ leaves
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from tenfold.systems.boosted_exits.method import add_exit, confidence, leaves
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel, State
from tenfold.systems.boosted_exits.serving.runner import (
    ExitOutputs,
    batched_leaves,
    check_thresholds,
    count_rows,
    require_eval,
    select_rows,
)


@dataclass
class _Item:
    """One input on its way: what it carries, which request it belongs to, and since when it waits."""

    state: State
    older: Tensor | None
    request: "_Request"
    row: int
    since: float


class _Request:
    """The inputs of one ``submit``; its future is done when the last of them has left."""

    def __init__(self, rows: int, stages: int) -> None:
        self.future: Future[ExitOutputs] = Future()
        self.answers: list[tuple[Tensor, int] | None] = [None] * rows
        self.open = rows
        self.stages = stages

    def answer(self, row: int, z: Tensor, exit: int) -> None:
        self.answers[row] = (z, exit)
        self.open -= 1
        if self.open == 0 and not self.future.cancelled():
            found = [answer for answer in self.answers if answer is not None]
            exits = torch.tensor([exit for _, exit in found])
            sizes = tuple(int((exits >= n).sum()) for n in range(self.stages))
            self.future.set_result(ExitOutputs(torch.stack([z for z, _ in found]), exits, sizes))

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class StageQueues:
    """The queues and the rule by which they are served, without threads: for a loop of one's own, and for tests.

    Args:
        model: the stages, in eval mode.
        thresholds: ``(exits,)``.
        batch_size: inputs on which a stage runs at once, at most.
        deadline_ms: how long an input may wait in one queue for others to come.
        clock: gives seconds.

    Raises:
        ValueError: the thresholds do not fit, the model is in training mode, or a number is out of range.
    """

    def __init__(
        self,
        model: EarlyExitModel,
        thresholds: Sequence[float],
        *,
        batch_size: int,
        deadline_ms: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_thresholds(model, thresholds)
        require_eval(model)
        if batch_size < 1 or deadline_ms < 0:
            raise ValueError(
                f"batch_size must be at least 1 and deadline_ms at least 0; got {batch_size}, {deadline_ms}"
            )
        self.model = model
        self.thresholds = tuple(thresholds)
        self.batch_size = batch_size
        self.deadline = deadline_ms / 1000
        self.clock = clock
        self.queues: list[deque[_Item]] = [deque() for _ in range(model.exits)]

    def submit(self, x: State) -> "Future[ExitOutputs]":
        """Queue a batch of inputs; the future gives their answers, in their order."""
        rows = count_rows(x)
        request = _Request(rows, self.model.exits)
        if rows == 0:
            request.fail(ValueError("a request needs at least one input"))
        now = self.clock()
        for row in range(rows):
            alone = select_rows(x, torch.tensor([row]), None)
            self.queues[0].append(_Item(alone, None, request, row, now))
        return request.future

    def waiting(self) -> int:
        """Number of inputs that have not left."""
        return sum(map(len, self.queues))

    def next_due(self) -> float | None:
        """When, by the clock, the oldest input's deadline passes; ``None`` where nobody waits."""
        return min((queue[0].since + self.deadline for queue in self.queues if queue), default=None)

    def run_next(self, *, flush: bool = False) -> bool:
        """Run one stage on one batch, if one is due; the deepest first, which frees inputs soonest.

        Args:
            flush: whether every waiting input is due.

        Returns:
            Whether a stage ran.
        """
        now = self.clock()
        for n in reversed(range(len(self.queues))):
            queue = self.queues[n]
            if queue and (flush or len(queue) >= self.batch_size or now - queue[0].since >= self.deadline):
                self._run(n, [queue.popleft() for _ in range(min(self.batch_size, len(queue)))])
                return True
        return False

    @torch.inference_mode()
    def _run(self, n: int, items: list[_Item]) -> None:
        try:
            flags = batched_leaves(self.model, n - 1) if n else None
            state, f = self.model.run_stage(n, _join([item.state for item in items], flags))
            older = None if n == 0 else torch.cat([item.older for item in items])  # type: ignore[misc]
            z = add_exit(f, older, self.model.reweight[n - 1])
            last = n == self.model.exits - 1
            leaving = [True] * len(items) if last else leaves(confidence(z), self.thresholds[n]).tolist()
        except Exception as error:  # whatever the model raises belongs to those who asked
            for item in items:
                item.request.fail(error)
            return
        now = self.clock()
        for row, item in enumerate(items):
            if leaving[row]:
                item.request.answer(item.row, z[row], n)
            else:
                rows = torch.tensor([row])
                kept = select_rows(state, rows, batched_leaves(self.model, n))
                self.queues[n + 1].append(_Item(kept, z[row : row + 1], item.request, item.row, now))


def _join(states: Sequence[State], flags: Sequence[bool] | None) -> State:
    """States of single inputs as the state of a batch; what has no batch axis is taken from the first."""
    leaves_of = [tree_flatten(state) for state in states]
    first, shape = leaves_of[0]
    batched = [isinstance(value, Tensor) for value in first] if flags is None else flags
    joined = [torch.cat([values[i] for values, _ in leaves_of]) if batched[i] else first[i] for i in range(len(first))]
    return tree_unflatten(joined, shape)


class RegroupingServer:
    """``StageQueues`` with a thread that serves them.

    Args:
        model: see ``StageQueues``.
        thresholds: see ``StageQueues``.
        batch_size: see ``StageQueues``.
        deadline_ms: see ``StageQueues``.

    Example:
        >>> with RegroupingServer(model, thresholds, batch_size=32, deadline_ms=5) as server:  # doctest: +SKIP
        ...     futures = [server.submit(image[None]) for image in images]
        ...     exits = [future.result().exits for future in futures]
    """

    def __init__(
        self, model: EarlyExitModel, thresholds: Sequence[float], *, batch_size: int = 32, deadline_ms: float = 5.0
    ) -> None:
        self._queues = StageQueues(model, thresholds, batch_size=batch_size, deadline_ms=deadline_ms)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="early-exit-stages", daemon=True)
        self._thread.start()

    def submit(self, x: State) -> "Future[ExitOutputs]":
        """Queue inputs ``(batch, ...)``; the future gives their ``ExitOutputs``.

        Raises:
            RuntimeError: the server is closed.
        """
        with self._changed:
            if self._closing:
                raise RuntimeError("the server is closed")
            future = self._queues.submit(x)
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer everything that waits, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "RegroupingServer":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            with self._changed:
                ran = self._queues.run_next(flush=self._closing)
                if ran:
                    continue
                if self._closing:
                    return
                due = self._queues.next_due()
                self._changed.wait(None if due is None else max(due - self._queues.clock(), 0.0))
