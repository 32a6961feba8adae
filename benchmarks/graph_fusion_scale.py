"""Time and peak memory of exact full-softmax training and exact best lists over many synthetic entities.

    python benchmarks/graph_fusion_scale.py [--cases NAME ...] [--sizes N ...] [--out FILE]

Each case runs in a process of its own, whose peak resident memory is counted above that of the tables. A step is the
loss of 256 queries over all entities and its gradients, by the product's own functions on a DistMult of width 64: a
full softmax, fusion's KL with a teacher, or the sampled softmax.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

QUERIES, WIDTH, K, SHARED = 256, 64, 64, 16_384
SIZES = (100_000, 1_000_000)
CASES = ("untiled", "tiled", "kl-untiled", "kl-tiled", "sampled", "best-64")


def measure(case: str, entities: int) -> dict[str, float]:
    """Processor seconds per step and peak memory above the tables, in this process, on one thread."""
    from tenfold.run import peak_process_memory_mb
    from tenfold.systems.graph_fusion import DistMult, full_scores_loss, mutual_loss
    from tenfold.systems.graph_fusion.fusion.sampled_losses import sampled_softmax_loss
    from tenfold.systems.graph_fusion.fusion.tiled_losses import score_or_vectors, tiled_mutual_loss, tiled_softmax
    from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch
    from tenfold.systems.graph_fusion.scale.top_k import tiled_topk

    torch.set_num_threads(1)  # processor time is then the time that a free core takes
    torch.manual_seed(0)
    encoder, teacher = DistMult(entities, 1, dim=WIDTH), DistMult(entities, 1, dim=WIDTH)
    teacher.entity_embedding.data = encoder.entity_embedding.data  # one table: memory is counted above it
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    heads, relations = torch.randint(entities, (QUERIES,)), torch.randint(2, (QUERIES,))
    batch = QueryBatch(
        heads=heads,
        relations=relations,
        owner=torch.arange(QUERIES),
        answers=torch.randint(entities, (QUERIES,)),
        weights=torch.ones(QUERIES),
        observed=torch.ones(QUERIES, dtype=torch.bool),
    )

    def guide(tiled: bool) -> Any:
        with torch.no_grad():
            return score_or_vectors(teacher, heads, relations, tiled)

    def step() -> None:
        if case == "untiled":
            full_scores_loss(score_or_vectors(encoder, heads, relations, False), batch, smoothing=0.0).backward()
        elif case == "tiled":
            tiled_softmax(score_or_vectors(encoder, heads, relations, True), batch, 0.0).backward()
        elif case == "kl-untiled":
            mutual_loss(score_or_vectors(encoder, heads, relations, False), guide(False)).backward()
        elif case == "kl-tiled":
            tiled_mutual_loss(score_or_vectors(encoder, heads, relations, True), guide(True)).backward()
        elif case == "sampled":
            sampled_softmax_loss(encoder, batch, SHARED).backward()
        else:
            vectors = guide(True)
            tiled_topk(vectors.queries, vectors.entities, K)

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
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of entities")
    parser.add_argument("--case", default=None, help="run one case in this process and print it")
    parser.add_argument("--entities", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.entities)))
        return
    out = Path(arguments.out)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
    rows = [row for row in rows if row["case"] not in arguments.cases or row["entities"] not in arguments.sizes]
    for entities in arguments.sizes:
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
