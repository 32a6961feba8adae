"""Two processes of torch.distributed for a function of a test."""

import sys
import time
from pathlib import Path

import cloudpickle
from warm import warm_process

_PROGRAM = """
import pickle, sys
from pathlib import Path
import torch
import torch.distributed as dist

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
pickle.loads((folder / "work.pickle").read_bytes())(rank)
dist.destroy_process_group()
"""


def on_two_ranks(work, folder):
    """Call ``work(rank)`` in two processes of one group; what goes wrong in one fails the test.

    Not forked from the test's own process: one that has run a backward pass cannot run another in its children.

    Args:
        work: a function; it is pickled whole, with its module, which no other process can import.
        folder: for the file by which the processes meet.
    """
    cloudpickle.register_pickle_by_value(sys.modules[work.__module__])
    (Path(folder) / "work.pickle").write_bytes(cloudpickle.dumps(work))
    programs = [warm_process("torch").start(_PROGRAM, ["two_ranks", folder, rank]) for rank in range(2)]
    deadline = time.monotonic() + 120
    while None in (codes := [program.poll() for program in programs]) and set(codes) <= {None, 0}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for program, code in zip(programs, codes, strict=True):
        if code is None:  # the other one failed, or both hang
            program.kill()
            program.wait()
    assert codes == [0, 0], "\n".join(program.err() for program in programs)
