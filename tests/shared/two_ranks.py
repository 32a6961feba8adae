"""Two processes of torch.distributed for a function of a test."""

import multiprocessing
import sys
import traceback

import cloudpickle
import torch
import torch.distributed as dist


def on_two_ranks(work, folder):
    """Call ``work(rank)`` in two processes of one group; what goes wrong in one fails the test.

    Not forked from the test's own process: one that has run a backward pass cannot run another in its children.

    Args:
        work: a function; it is pickled whole, with its module, which no other process can import.
        folder: for the file by which the processes meet.
    """
    cloudpickle.register_pickle_by_value(sys.modules[work.__module__])
    payload = cloudpickle.dumps(work)
    context = multiprocessing.get_context("forkserver")
    said = context.SimpleQueue()
    processes = [context.Process(target=start, args=(payload, rank, str(folder), said)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        alive = process.is_alive()
        process.kill()
        assert not alive, "a process hangs"
    assert [process.exitcode for process in processes] == [0, 0], said.get() if not said.empty() else "a process died"


def start(payload, rank, folder, said):
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        cloudpickle.loads(payload)(rank)
    except BaseException:
        said.put(f"rank {rank}: {traceback.format_exc()}")
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()
