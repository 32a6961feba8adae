"""Tables of condensation and its audit."""

import json
from pathlib import Path

from markdown_tables import claims_of, named_table, table
from tenfold.results import load_results

RESULTS = Path(__file__).parent / "results"


def small() -> str:
    """Sets, attacks, defences, claims and ablations of the preset small."""
    results = load_results(RESULTS / "condensation-audit-small.json")
    facts = results.environment
    return "\n\n".join(
        [
            f"`tenfold run condensation-audit --preset small`: {facts['data']}, {facts['train_images']:,} training "
            f"images, {results.cost.seconds / 60:.1f} minutes on {facts['threads']} thread(s). {results.notes[0]}",
            *(named_table(results, found.id) for found in results.tables),
            "Claims, paired over seeds with 95 % intervals (not settled: the interval includes the target):",
            claims_of(results),
        ]
    )


def steps() -> str:
    """Time of condensation steps against the straightforward loops."""
    results = json.loads((RESULTS / "condensation-steps.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["setting"],
            row["step"],
            f"{row['ours_ms']:.1f} ms",
            f"{row['straightforward_ms']:.1f} ms",
            f"{row['ratio']:.2f}",
            f"{row['difference']:.0e}" if "difference" in row else "",
        ]
        for row in results["rows"]
    ]
    forms = [
        [row["setting"], f"{row['loop_ms']:.0f} ms", f"{row['vmap_ms']:.0f} ms", f"{row['ratio']:.2f}"]
        for row in results["ensembles"]
    ]
    facts = results["environment"]
    return "\n\n".join(
        [
            f"`python benchmarks/condensation_steps.py`: a step against a straightforward form of the published loops, "
            f"same settings, {facts['threads']} thread(s) of a CPU, medians of {facts['rounds']} rounds, taking turns. "
            "Difference: of the images' gradient, same network and batches, over its largest value.",
            table(["images", "step", "tenfold", "straightforward", "times faster", "difference"], rows),
            "Five networks trained on one set, one after the other or stacked (`vmap`), on the same CPU; on a CPU the "
            "loop is taken, on a GPU the stack:",
            table(["images", "loop", "vmap", "vmap / loop"], forms),
        ]
    )


PARTS = {"small": small, "steps": steps}
"""Parts of the room's README, by the name in the comment before them."""
