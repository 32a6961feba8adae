"""Write the tables of the documentation from the committed results.

    python benchmarks/make_tables.py [--check]

Replaces what stands between ``<!-- results: NAME -->`` and ``<!-- end -->``; ``--check`` only says what is stale.
"""

import json
import re
import sys
from pathlib import Path

import condensation_tables
from markdown_tables import claims_of, named_table, table
from tenfold.results import load_results
from tenfold.systems.relation_distillation.experiment.settings import PRESETS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SYSTEMS = ROOT / "src" / "tenfold" / "systems"


def boosted_exits_small() -> str:
    """Claims and accuracies of the preset small."""
    results = load_results(RESULTS / "boosted-exits-small.json")
    accuracy = next(found for found in results.tables if found.id == "accuracy")
    seconds, threads = results.cost.seconds, results.environment["threads"]
    return "\n\n".join(
        [
            f"`tenfold run boosted-exits --preset small`: {results.environment['data']}, "
            f"{results.environment['train_images']:,} training images, {seconds / 60:.1f} minutes on {threads} threads."
            f" {results.notes[0]}",
            "Test accuracy in %, means over seeds:",
            table(
                accuracy.columns, [[f"{v:.2f}" if isinstance(v, float) else v for v in row] for row in accuracy.rows]
            ),
            "Claims, in accuracy points, paired over seeds with 95 % intervals (not settled: the interval includes the "
            "target):",
            claims_of(results),
        ]
    )


def boosted_exits_serving() -> str:
    """Realised against predicted saving, and the comparison with earlyon."""
    results = json.loads((RESULTS / "boosted-exits-serving.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["network"],
            row["batch"],
            f"{row['predicted_saving']:.0%}",
            f"{row['realised_saving']:.0%}",
            f"{row['ratio']:.2f}",
        ]
        for row in results["compaction"]
    ]
    peer = [[row["what"], row["tenfold"], row["earlyon"], row["ratio"]] for row in results["earlyon"]["table"]]
    return "\n\n".join(
        [
            "`python benchmarks/boosted_exits_serving.py`: time saved by stopping against what cost predicts, "
            "one thread, against the same network with all exits computed:",
            table(["network", "batch", "predicted", "realised", "realised / predicted"], rows),
            f"Side by side with earlyon {results['environment']['earlyon']}, the same trained network and thresholds:",
            table(["", "tenfold", "earlyon", "ratio"], peer),
            *results["earlyon"].get("notes", []),
        ]
    )


def activation_uncertainty_small() -> str:
    """Rows, claims and ablations of the preset small."""
    results = load_results(RESULTS / "activation-uncertainty-small.json")
    facts = results.environment
    ids = [found.id for found in results.tables if found.id.startswith("rows-")]
    ids += ["costs", "held-out", *(f"ablation-{name}" for name in ("rates", "places", "label_passes", "rows", "shift"))]
    return "\n\n".join(
        [
            f"`tenfold run activation-uncertainty --preset small`: {facts['data']}, {results.cost.seconds / 60:.1f} "
            f"minutes on {facts['threads']} thread(s). {results.notes[0]}",
            *(named_table(results, id) for id in ids),
            "Claims, paired over seeds with 95 % intervals (not settled: the interval includes the target):",
            claims_of(results, "+.3f"),
        ]
    )


def activation_uncertainty_serving() -> str:
    """Time of a prediction with uncertainty over a plain one."""
    results = json.loads((RESULTS / "activation-uncertainty-serving.json").read_text(encoding="utf-8"))
    kinds = ["last layer", "all layers", "last layer, ONNX", "T = 20, prefix cached", "T = 20"]
    peer = "torch-uncertainty, T = 20"
    kinds += [peer] if peer in results["rows"][0]["ratios"] else []
    rows = [
        [
            row["network"],
            f"{row['multiply_adds'] / 1e6:.2f} M",
            row["batch"],
            f"{row['milliseconds']['plain']:.3f} ms",
            *(f"{row['ratios'][kind]:.2f}" for kind in kinds),
        ]
        for row in results["rows"]
    ]
    version = results["environment"].get("torch_uncertainty")
    return "\n\n".join(
        [
            "`python benchmarks/activation_uncertainty_serving.py`: time of a prediction with uncertainty over a plain "
            "one, one thread, medians, all in one process:",
            table(["network", "multiply-adds", "batch", "plain", *kinds], rows),
            "Last layer: the estimator reads the last hidden layer, as the layer selection often chooses; ONNX: one "
            "graph with both outputs over the plain graph. T = 20: Monte-Carlo dropout by 20 passes"
            + (f"; torch-uncertainty is version {version}." if version else "."),
        ]
    )


def relation_distillation_small() -> str:
    """Claims and accuracies of the preset small."""
    results = load_results(RESULTS / "relation-distillation-small.json")
    known, preset = results.environment, PRESETS["small"]
    parts = [
        f"`tenfold run relation-distillation --preset small`: {known['data']}, {known['train_images']:,} training "
        f"images, {preset.finetune.labels:,} of them with labels (few: {preset.finetune.few_labels} per class), "
        f"{preset.seeds} seeds, {results.cost.seconds / 60:.1f} minutes on {known['threads']} thread of a busy "
        f"machine. {' '.join(results.notes[:-1])}"
    ]
    for found in results.tables:
        rows = [[f"{v:.2f}" if isinstance(v, float) else "" if v is None else v for v in row] for row in found.rows]
        parts += [f"{found.title}. {found.caption}", table(found.columns, rows)]
    parts += [
        "Claims, in accuracy points, paired over seeds with 95 % intervals (not settled: the interval includes the "
        "target):",
        claims_of(results),
    ]
    return "\n\n".join(parts)


def relation_choice() -> str:
    """What the learning rates of the presets were chosen by."""
    parts = []
    for path in sorted(RESULTS.glob("relation-choice-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            ["fine-tuning, from scratch, all labels", row["learning_rate"], row["epochs"], row["accuracy"]]
            for row in found["finetuning"]
        ]
        rows += [
            [f"pre-training, {arm}, few labels", row["learning_rate"], "", accuracy]
            for row in found["pretraining"]
            for arm, accuracy in row["arms"].items()
        ]
        chosen = ", ".join(f"`{name} {value}`" for name, value in found["chosen"].items())
        parts += [
            f"`python benchmarks/relation_choice.py --preset {found['preset']}`: accuracy (%) on the "
            f"{found['validation_images']:,} validation images, seed {found['seed']}, which is none of the preset's; "
            f"chosen: {chosen}. The baseline chooses how all arms are fine-tuned.",
            table(["choice", "learning rate", "epochs", "validation"], rows),
        ]
    return "\n\n".join(parts)


def relation_kernels() -> str:
    """Time and memory of the forms of the loss."""
    results = json.loads((RESULTS / "relation-kernels.json").read_text(encoding="utf-8"))
    rows = [
        [
            shape["tokens"],
            row["form"],
            f"{row['milliseconds']:.0f} ms",
            f"{row['speedup']:.2f}",
            f"{row['mebibytes']:.0f} MiB",
            f"{row['memory_ratio']:.1f}",
            "" if row["relative_error"] is None else f"{row['relative_error']:.0e}",
        ]
        for shape in results["shapes"]
        for row in shape["rows"]
    ]
    environment, shapes = results["environment"], results["shapes"]
    sizes = " and ".join(f"{s['batch']} x {s['heads']} maps of {s['tokens']} tokens" for s in shapes)
    return "\n\n".join(
        [
            f"`python benchmarks/relation_kernels.py`: forward and backward of both relations, ViT-L to ViT-B head "
            f"widths, {sizes}, {environment['device']}, {environment['threads']} threads, "
            f"torch {environment['torch']}. Speed and memory as ratios to the direct form; error of the loss against "
            "float64:",
            table(["tokens", "form", "time", "faster", "extra memory", "less", "error"], rows),
        ]
    )


def graph_fusion_small(preset: str = "small") -> str:
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


def graph_fusion_pykeen() -> str:
    """Side by side with PyKEEN."""
    results = json.loads((RESULTS / "graph-fusion-pykeen.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["graph"],
            row["what"],
            f"{row['queries'] / row['tenfold']:,.0f}",
            f"{row['queries'] / row['pykeen']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['largest_difference']:.0e}" if "largest_difference" in row else "-",
        ]
        for row in results["rows"]
    ]
    environment = results["environment"]
    turned = sum(row.get("different_ranks", 0) for row in results["rows"])
    return "\n\n".join(
        [
            f"`python benchmarks/graph_fusion_pykeen.py`: side by side with PyKEEN {environment['pykeen']} in one "
            f"process, {environment['threads']} thread(s): DistMult of width 64, batches of 256, same data and scores.",
            table(["graph", "", "tenfold, queries/s", "PyKEEN, queries/s", "ratio", "largest difference"], rows),
            "PyKEEN's loop writes no checkpoints; ours through `fit` writes one per epoch, and an epoch of UMLS has "
            "six steps: there the trainer's fixed cost per step and epoch decides. The difference is the largest of "
            "MRR, Hits@1, Hits@10, and mean rank relative to its size (PyKEEN keeps ranks in single precision). On one "
            "table of scores all ranks are equal; from weights, two libraries round scores differently: "
            f"{turned} rank(s) turn.",
        ]
    )


def graph_fusion_scale() -> str:
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


PAGES = {
    SYSTEMS / "relation_distillation" / "README.md": {
        "small": relation_distillation_small,
        "choice": relation_choice,
        "kernels": relation_kernels,
    },
    SYSTEMS / "graph_fusion" / "README.md": {
        "small": graph_fusion_small,
        "pykeen": graph_fusion_pykeen,
        "scale": graph_fusion_scale,
    },
    SYSTEMS / "condensation_audit" / "README.md": condensation_tables.PARTS,
    SYSTEMS / "boosted_exits" / "README.md": {"small": boosted_exits_small, "serving": boosted_exits_serving},
    SYSTEMS / "activation_uncertainty" / "README.md": {
        "small": activation_uncertainty_small,
        "serving": activation_uncertainty_serving,
    },
}
"""For each page the parts that are made from results, by the name in the comment before them."""


def main() -> int:
    """Rewrite the pages, or check them."""
    check, stale = "--check" in sys.argv, []
    for page, parts in PAGES.items():
        text = page.read_text(encoding="utf-8")
        made = text
        for name, make in parts.items():
            pattern = re.compile(rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", re.S)
            content = make()
            made = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", made)
        if made != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(made, encoding="utf-8")
    print("stale:" if check else "written:", *stale or ["nothing"])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
