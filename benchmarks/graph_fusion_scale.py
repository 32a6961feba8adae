"""Time and peak memory of exact full-softmax training and exact best lists over many synthetic entities.

    python benchmarks/graph_fusion_scale.py [--cases NAME ...] [--out FILE]

Each case runs in a process of its own, whose peak resident memory is counted above that of the tables. A step is the
loss of 256 queries over all entities and its gradients, width 64: a full softmax, or fusion's KL with a teacher.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

QUERIES, WIDTH, K = 256, 64, 64
SIZES = (100_000, 1_000_000)
CASES = ("untiled", "tiled", "kl-untiled", "kl-tiled", "sampled", "best-64")


def measure(case: str, entities: int) -> dict[str, float]:
    """Processor seconds per step and peak memory above the tables, in this process, on one thread."""
    from tenfold.losses import distillation_kl
    from tenfold.run import peak_process_memory_mb
    from tenfold.systems.graph_fusion.fusion.tiled_losses import Vectors, tiled_mutual_loss
    from tenfold.systems.graph_fusion.scale.tiles import tiled_cross_entropy
    from tenfold.systems.graph_fusion.scale.top_k import tiled_topk

    torch.set_num_threads(1)  # processor time is then the time that a free core takes
    torch.manual_seed(0)
    table = (torch.randn(entities, WIDTH) / WIDTH**0.5).requires_grad_()
    table.grad = torch.zeros_like(table)
    queries = torch.randn(QUERIES, WIDTH, requires_grad=True)
    answers, owner, weights = torch.randint(entities, (QUERIES,)), torch.arange(QUERIES), torch.ones(QUERIES)
    shared, guide = torch.randint(entities, (16_384,)), torch.randn(QUERIES, WIDTH)  # the teacher's queries

    def step() -> None:
        if case == "untiled":
            torch.nn.functional.cross_entropy(queries @ table.T, answers).backward()
        elif case == "tiled":
            tiled_cross_entropy(queries, table, owner, answers, weights).backward()
        elif case == "kl-untiled":
            distillation_kl(queries @ table.T, guide @ table.detach().T).backward()
        elif case == "kl-tiled":
            tiled_mutual_loss(Vectors(queries, table, None), Vectors(guide, table, None)).backward()
        elif case == "sampled":
            scores = torch.cat([(queries * table[answers]).sum(1, keepdim=True), queries @ table[shared].T], 1)
            torch.nn.functional.cross_entropy(scores, torch.zeros(QUERIES, dtype=torch.int64)).backward()
        else:
            tiled_topk(queries.detach(), table.detach(), K)

    before = peak_process_memory_mb()
    step()
    peak = peak_process_memory_mb() - before
    times = []
    for _ in range(3 if entities <= 100_000 else 1):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return {"seconds": sorted(times)[len(times) // 2], "peak_mb": peak, "tables_mb": 2 * entities * WIDTH * 4 / 2**20}


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "graph-fusion-scale.json"))
    parser.add_argument("--cases", nargs="+", default=CASES, help="measure these; others stay as the file has them")
    parser.add_argument("--case", default=None, help="run one case in this process and print it")
    parser.add_argument("--entities", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.entities)))
        return
    out = Path(arguments.out)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    rows = [row for row in rows if row["case"] not in arguments.cases]
    for entities in SIZES:
        for case in arguments.cases:
            command = [sys.executable, __file__, "--case", case, "--entities", str(entities)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"entities": entities, "case": case, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: (row["entities"], CASES.index(row["case"])))
    environment = {"torch": torch.__version__, "threads": 1}
    results = {"environment": environment, "queries": QUERIES, "width": WIDTH, "rows": rows}
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
