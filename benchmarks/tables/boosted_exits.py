"""Tables of boosted early exits."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import load_results


def small() -> str:
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


def serving() -> str:
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


PARTS = {"small": small, "serving": serving}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
