"""Tables of condensation and its audit."""

import json

from tables.markdown import RESULTS, claims_of, named_table, table
from tenfold.results import load_results


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


def detection() -> str:
    """How well the audit and the published defences tell poisoned sets from clean ones."""
    results = json.loads((RESULTS / "condensation-audit-detection.json").read_text(encoding="utf-8"))
    sets, seconds = results["sets"], results["cpu_seconds"]
    alarm_free = {"spectral signatures", "STRIP on the set"}
    rows = []
    for name, found in results["methods"].items():
        rule = name not in alarm_free
        counts = ("false_alarms", "detected_noticeable", "right_class_noticeable", "detected_all")
        cells = ["{} of {}".format(*found[count]) if rule else "no rule" for count in counts]
        rows.append([name, f"{found['auroc_noticeable']:.3f}", f"{found['auroc_all']:.3f}", *cells])
    kinds = {"clean": "clean", "noticeable": "a quarter of the images or more", "weak": "weaker attacks"}
    verdicts = [
        [kinds[group], *("{} of {}".format(*found[word]) for word in ("clean", "suspicious", "backdoored", "right"))]
        for group, found in results["verdicts"].items()
    ]
    power = ", ".join(f"{row['size']} x {row['size']}: {row['found']} of {row['sets']}" for row in results["power"])
    published = ", ".join(f"{name} {value:.1f}" for name, value in results["defence_cpu_seconds"].items())
    return "\n\n".join(
        [
            f"`python benchmarks/condensation_audit_detection.py`: {results['data']}. Thresholds from "
            f"{sets['calibrate']} clean sets; rates on {sets['clean']} other clean and {sets['poisoned']} poisoned "
            "sets (naive and doorping in legal pixels), whose strengths, sizes, places, colours and targets do not "
            f"occur in the calibration. {sets['noticeable']} of them turn at least a quarter of the images; the rest "
            "are weak.",
            table(
                [
                    "method",
                    "AUROC, a quarter or more",
                    "AUROC, all",
                    "false alarms",
                    "detected",
                    "right class",
                    "detected, all",
                ],
                rows,
            ),
            f"The whole audit of the same sets (networks of its own, scan, confirmation beside a control; "
            f"{results['audit_cpu_seconds']:.0f} CPU seconds a set):",
            table(["sets", "clean", "suspicious", "backdoored", "with the right class"], verdicts),
            f"CPU seconds per set (median): train {seconds['train']:.1f}, scan {seconds['scan']:.1f}; {published}. "
            f"Power on the calibration's own poisoned sets (a quarter or more): {power}. Given the trigger itself, "
            f"STRIP tells triggered inputs with an AUROC of {results['strip_told_the_trigger_auroc']:.2f}. By class: "
            "clean sets are driven to the same classes every time, so scores are compared with those of clean sets "
            "class by class.",
        ]
    )


PARTS = {"small": small, "detection": detection, "steps": steps}
"""Parts of the room's README, by the name in the comment before them."""
