"""Independent steps of a run (arms x seeds) in worker processes of one thread each.

On networks of the sizes that a CPU trains, a second thread gains next to nothing, while a second process does a second
step. What a step finds depends on its settings only, so that any number of workers gives the same numbers and a killed
run resumes as one without workers does.


    def work(config: Config, data: Data, step: Step, folder: Path, run: Run) -> dict: ...

    phases = [[Step("joint/seed0", ("joint", 0)), Step("boosted/seed0", ("boosted", 0))]]
    found = do_steps(run, phases, partial(open_place, config), workers=config.workers)
    found["joint/seed0"]
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.errors import RunStopped
from tenfold.run import Run


@dataclass(frozen=True)
class Step:
    """One unit of work.

    Attributes:
        name: of its folder, unique within the run.
        arguments: what tells it from the others; plain values.
    """

    name: str
    arguments: tuple[Any, ...] = ()


Work = Callable[[Step, Path, Run], dict[str, Any]]
"""Does a step in its folder, and gives its JSON-able result."""

Opener = Callable[[], Work]
"""Makes what every step needs (data, network) once per process; a function of a module, or a ``partial`` of one."""


def free_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_steps(
    run: Run,
    phases: Iterable[Sequence[Step]],
    open_place: Opener,
    *,
    workers: int | None = None,
    threads: int = 1,
    work: Work | None = None,
) -> dict[str, dict[str, Any]]:
    """Do all steps, phase by phase; those that are done are read back, and cost nothing.

    Args:
        run: the run's folder.
        phases: steps of a phase depend on earlier phases only.
        open_place: see ``Opener``.
        workers: processes; one per free core where ``None``. With one, this process does all steps itself.
        threads: threads of torch's operations in each process.
        work: what ``open_place`` gives, where the calling process has made it already.

    Returns:
        The results by name, in the order of the steps.
    """
    import torch

    planned = [list(phase) for phase in phases]
    left = [[step for step in phase if not run.is_done(step.name)] for phase in planned]
    total = sum(map(len, left))
    processes = min(workers or free_cores(), max(map(len, left), default=0))
    run.expect(total, processes)
    if total > 1 and processes > 1:
        _share(run, left, open_place, processes, threads)
    elif total:
        torch.set_num_threads(threads)
        work = work or open_place()
        for step in (step for phase in left for step in phase):
            _do(run, step, work)
    # All are done now: nothing is called any more.
    return {step.name: run.step(step.name, _never) for phase in planned for step in phase}


def _do(run: Run, step: Step, work: Work) -> None:
    run.step(step.name, lambda folder: work(step, folder, run))


def _never(folder: Path) -> dict[str, Any]:
    raise AssertionError(f"{folder} should have been done")


def _share(run: Run, phases: Sequence[Sequence[Step]], open_place: Opener, processes: int, threads: int) -> None:
    # A server that has imported once is forked for each worker: a fresh interpreter each would import all anew.
    context = multiprocessing.get_context("forkserver")
    opener = getattr(open_place, "func", open_place)
    context.set_forkserver_preload([opener.__module__, "tenfold.training.lightning_task"])
    messages = context.SimpleQueue()
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(messages, run, ended), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(
        processes, context, initializer=_open, initargs=(open_place, run.folder, threads, messages)
    )
    try:
        for phase in phases:
            waiting: set[Future] = {pool.submit(_do_in_worker, step) for step in phase}
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise RunStopped(
            "a worker process was killed, perhaps for want of memory; continue with --resume, with fewer --workers"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):  # they would finish their steps first
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        ended.set()  # and not by a message: a worker that was ended while it wrote holds the queue's lock for ever
        listener.join(timeout=5)


def _listen(messages: Any, run: Run, ended: threading.Event) -> None:
    """Show on the run's own console how far the workers are."""
    while not (ended.is_set() and messages.empty()):
        if messages.empty():
            ended.wait(0.05)
            continue
        kind, arguments = messages.get()
        if kind == "progress":
            run.progress(*arguments)
        elif kind == "started":
            run.started(*arguments)
        else:
            run.finished(*arguments)


_place: tuple[Run, Work, Any] | None = None


def _open(open_place: Opener, folder: Path, threads: int, messages: Any) -> None:
    """What a worker does first: its own copy of the data, the same folder; it ends when the run's process does."""
    import signal

    import torch

    global _place
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of the group; the run's process ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    run = Run(folder, quiet=True, report=lambda *progress: messages.put(("progress", progress)))
    _place = (run, open_place(), messages)


def _leave_with(parent: Any) -> None:
    """End when the run's own process was killed: a resumed run must be alone in the folder."""
    parent.join()
    os._exit(1)


def _do_in_worker(step: Step) -> None:
    assert _place is not None
    run, work, messages = _place
    messages.put(("started", (step.name,)))
    _do(run, step, work)
    messages.put(("finished", (step.name,)))
