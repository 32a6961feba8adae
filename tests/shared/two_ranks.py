"""Two processes of torch.distributed, forked from the test's own: nothing is imported anew."""

import multiprocessing
import traceback

import torch
import torch.distributed as dist


def on_two_ranks(work, folder):
    """Call ``work(rank)`` in two processes of one group; what goes wrong in one fails the test.

    Args:
        work: a function; what it needs it has from the test's process.
        folder: for the file by which the processes meet.
    """
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()

    def start(rank):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        try:
            work(rank)
        except BaseException:
            said.put(f"rank {rank}: {traceback.format_exc()}")
            raise SystemExit(1) from None
        finally:
            dist.destroy_process_group()

    processes = [context.Process(target=start, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        alive = process.is_alive()
        process.kill()
        assert not alive, "a process hangs"
    assert [process.exitcode for process in processes] == [0, 0], said.get() if not said.empty() else "a process died"
