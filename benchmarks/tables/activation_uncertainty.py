"""Tables of activation uncertainty."""

import json

from tables.markdown import RESULTS, claims_of, named_table, table
from tenfold.results import load_results


def small() -> str:
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


def serving() -> str:
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


PARTS = {"small": small, "serving": serving}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
