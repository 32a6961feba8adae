"""Tables of graph fusion."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import load_results


def small(preset: str = "small") -> str:
    """Claims and ranks of the preset small, or of another."""
    results = load_results(RESULTS / f"graph-fusion-{preset}.json")
    ranks, rounds = (next(found for found in results.tables if found.id == name) for name in ("ranks", "rounds"))
    known = results.environment
    ours = [[f"{v:.2f}" if isinstance(v, float) else "-" if v is None else v for v in row] for row in ranks.rows]
    injected = [row for row in rounds.rows if row[0] == "vem2l"]
    return "\n\n".join(
        [
            f"`tenfold run graph-fusion --preset {preset}`: {known['data']}, a part of {known['entities']:,} entities, "
            f"{known['train_triples']:,} training and {known['test_triples']:,} test triples, "
            f"{results.cost.seconds / 60:.1f} minutes on {known['threads']} thread(s) of a shared machine. "
            "Test split, filtered, both directions, in %, means over seeds:",
            table(ranks.columns, ours),
            "Claims, with 95 % intervals from a paired bootstrap over test triples and seeds (not settled: the "
            "interval includes the target):",
            claims_of(results, "+.3f"),
            "Injected triples, and how many of them are known to be true "
            + (
                "(the full FB15k-237 tells):" if preset == "small" else "(by validation and test facts: a lower bound):"
            ),
            table(rounds.columns[1:], [row[1:] for row in injected]),
        ]
    )


def pykeen() -> str:
    """Side by side with PyKEEN."""
    results = json.loads((RESULTS / "graph-fusion-pykeen.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["graph"],
            row["what"],
            f"{row['queries'] / row['tenfold']:,.0f}",
            f"{row['queries'] / row['pykeen']:,.0f}",
            f"{row['ratio']:.2f}",
            row.get("pykeen_batch_size", "-"),
            f"{row['largest_difference']:.0e}" if "largest_difference" in row else "-",
        ]
        for row in results["rows"]
    ]
    columns = [
        "graph",
        "",
        "tenfold, queries/s",
        "PyKEEN, queries/s",
        "ratio",
        "PyKEEN's best batch",
        "largest difference",
    ]
    environment = results["environment"]
    turned = sum(row.get("different_ranks", 0) for row in results["rows"])
    return "\n\n".join(
        [
            f"`python benchmarks/graph_fusion_pykeen.py`: side by side with PyKEEN {environment['pykeen']} in one "
            f"process, {environment['threads']} thread(s), by processor time: DistMult of width 64, trained in batches "
            "of 256, same data and scores; PyKEEN evaluates with the batch size that suits it best.",
            table(columns, rows),
            "PyKEEN's loop writes no checkpoints; ours through `fit` writes one per epoch, and an epoch of UMLS has "
            "six steps: there the trainer's fixed cost per step and epoch decides. The difference is the largest of "
            "MRR, Hits@1, Hits@10, and mean rank relative to its size (PyKEEN keeps ranks in single precision). On one "
            "table of scores all ranks are equal; from weights, two libraries round scores differently: "
            f"{turned} rank(s) turn.",
        ]
    )


def scale() -> str:
    """Time and memory over many entities."""
    results = json.loads((RESULTS / "graph-fusion-scale.json").read_text(encoding="utf-8"))
    names = {
        "untiled": "full softmax, untiled",
        "tiled": "full softmax, tiled (exact)",
        "kl-untiled": "KL with a teacher, untiled",
        "kl-tiled": "KL with a teacher, tiled (exact)",
        "sampled": "sampled softmax, 16,384 shared negatives",
        "best-64": "exact best 64, tiled",
    }
    rows = [
        [f"{row['entities']:,}", names[row["case"]], f"{row['seconds']:.2f}", f"{row['peak_mb']:,.0f}"]
        for row in results["rows"]
    ]
    return "\n\n".join(
        [
            f"`python benchmarks/graph_fusion_scale.py`: one step of {results['queries']} queries, width "
            f"{results['width']}, processor seconds of one thread, synthetic entities; memory above that "
            "of the table and its gradient:",
            table(["entities", "", "seconds", "peak memory (MiB)"], rows),
        ]
    )


PARTS = {"small": small, "pykeen": pykeen, "scale": scale}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
