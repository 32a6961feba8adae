"""Tables of the dual encoder."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import load_results


def small() -> str:
    """Accuracies and claims of the preset small."""
    results = load_results(RESULTS / "dual-encoder-small.json")
    arms = [name for name in results.metrics if name not in ("teacher", "majority answer", "served")]
    seeds = len(results.metrics["teacher"]["accuracy_by_seed"] or [])  # type: ignore[arg-type]
    trained = seeds * sum(float(row.get("train_seconds") or 0) for row in results.metrics.values())  # type: ignore[arg-type]
    parts = [
        f"`tenfold run dual-encoder --preset small`, {seeds} seed(s), arms {', '.join(arms)}: "
        f"{results.environment['data']}, "
        f"{trained / 60:.1f} minutes of training, all networks together. {results.summary}"
    ]
    for found in results.tables:
        if found.id.startswith("accuracy") or found.id == "kinds":
            parts += [f"{found.title}. {found.caption}", table(found.columns, found.rows)]
    return "\n\n".join([*parts, "Claims:", claims_of(results)])


def throughput() -> str:
    """Pairs per second at both sizes, and the index of many images."""
    found = json.loads((RESULTS / "dual-encoder-throughput.json").read_text(encoding="utf-8"))
    parts = [
        f"`python benchmarks/dual_encoder_throughput.py`, {found['environment']['threads']} thread(s), random weights, "
        "medians; the first two rows of a size include the encoding of images:"
    ]
    for part, title in (("toy", "width 64, 3 layers"), ("base", "ViLT-B/32")):
        if part in found:
            timed = found[part]["timed"]
            last = [row["pairs_per_second"]["median"] for name, row in timed.items() if name.startswith("fusion")][-1]
            rows = [
                [
                    name,
                    f"{row['pairs_per_second']['median']:,.1f}",
                    f"{row['pairs_per_second']['median'] / last:,.1f}",
                    f"{row['milliseconds']['median']:,.1f}",
                    f"{row['milliseconds']['p95']:,.1f}",
                ]
                for name, row in timed.items()
            ]
            columns = [title, "pairs per second", "times the teacher", "ms per batch, median", "p95"]
            parts.append(table(columns, rows))
    if "index" in found:
        rows = [
            [
                f"{row['images']:,}",
                row["width"],
                row["kind"],
                f"{row['bytes'] / 1e6:,.0f}",
                f"{row['bytes_per_image']:,}",
                f"{row['seconds_per_question']:.2f}",
                f"{row['seconds_per_question_of_16']:.2f}",
                f"{row['memory_mb_while_searching']:,.0f}",
                "yes" if row["exact"] else "no",
            ]
            for row in found["index"]
        ]
        columns = ["images", "width", "numbers", "MB on disk", "bytes per image", "seconds per question",
                   "of 16 at once", "MB of memory more", "exact"]  # fmt: skip
        parts += ["An index of random vectors, searched for the likeliest ten:", table(columns, rows)]
    if "vision_language_model" in found:
        row = found["vision_language_model"]
        parts.append(
            f"Beside it, computed and not measured: {row['what']}: {row['giga_macs_per_pair']:.1f} G multiply-adds and "
            f"{row['pairs_per_second']:.2f} pairs per second, {row['bytes_per_image'] / 1e6:.1f} MB per image."
        )
    return "\n\n".join(parts)


PARTS = {"small": small, "throughput": throughput}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
