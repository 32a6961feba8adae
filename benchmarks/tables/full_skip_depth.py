"""Tables of full-skip depth."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import load_results


def small() -> str:
    """Claims and metrics of the preset small."""
    results = load_results(RESULTS / "full-skip-depth-small.json")
    parts = [
        f"`tenfold run full-skip-depth --preset small`: {results.environment['data']}, 3 seeds, "
        f"{results.cost.seconds / 60:.0f} minutes in two processes on a machine that did other work, too. "
        + " ".join(note for note in results.notes if any(word in note for word in ("Protocol", "drive", "CPU")))
    ]
    for found in results.tables:
        keep = [place for place, name in enumerate(found.columns) if name != "CPU seconds"]
        rows = [[_short(row[place]) for place in keep] for row in found.rows]
        parts += [f"{found.title} ({found.caption.split(';')[0]}):", table([found.columns[p] for p in keep], rows)]
    parts += [
        "Claims, in per cent of the baseline's number, paired over seeds with 95 % intervals:",
        claims_of(results),
    ]
    return "\n\n".join(parts)


def grid() -> str:
    """The ablation grid."""
    found = json.loads((RESULTS / "full-skip-depth-ablations.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["connectivity"],
            row["fusion"],
            row["resize"],
            f"{row['params']:,}",
            f"{row['abs_rel']:.4f}",
            "-" if row["abs_rel_sd"] is None else f"{row['abs_rel_sd']:.4f}",
            f"{row['edge_abs_rel']:.4f}",
            f"{row['boundary_f']:.3f}",
            _weights(row["source_weights"]),
        ]
        for row in found["cells"]
    ]
    return "\n\n".join(
        [
            f"`python benchmarks/full_skip_depth_ablations.py`: connectivity x fusion, and resize modes, on the "
            "harder rooms "
            f"at {found['size'][0]} x {found['size'][1]}, {found['steps']} steps of batch {found['batch_size']}, "
            f"{found['seeds']} seeds, {found['test_images']} test images. Trainings this short tell apart only what "
            "differs "
            "by more than the spread; weights: learned weight of E1 .. at the deepest level, first seed.",
            table(
                [
                    "connectivity",
                    "fusion",
                    "resize",
                    "parameters",
                    "abs rel",
                    "sd",
                    "edge abs rel",
                    "boundary F",
                    "weights",
                ],
                rows,
            ),
        ]
    )


def speed() -> str:
    """Decoders at 480 x 640, and the scorer."""
    found = json.loads((RESULTS / "full-skip-depth-speed.json").read_text(encoding="utf-8"))
    rows = [
        [
            row["decoder"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            f"{row['eager_ms']:.0f}",
            f"{row['eager_speed_of_unet']:.2f}",
            "-" if row["onnx_ms"] is None else f"{row['onnx_ms']:.0f}",
            "-" if row["onnx_speed_of_unet"] is None else f"{row['onnx_speed_of_unet']:.2f}",
            f"{row['memory_mib']:.0f} ({row['memory_of_unet']:.2f})",
            f"{row['eager_images_per_second']:.2f}",
            "-" if row["onnx_images_per_second"] is None else f"{row['onnx_images_per_second']:.2f}",
        ]
        for row in found["decoders"]
    ]
    scored = found.get("scorer")
    size = found["size"]
    return "\n\n".join(
        [
            f"`python benchmarks/full_skip_depth_speed.py`: decoders with their heads on "
            f"{found['encoder']}'s features of one "
            f"image of {size[0]} x {size[1]}, width {found['width']}, one thread, fastest of several turns "
            "(ms of CPU time); images/s with the encoder:",
            table(
                [
                    "decoder",
                    "parameters",
                    "multiply-adds",
                    "eager",
                    "of U-Net's speed",
                    "ONNX",
                    "of U-Net's speed",
                    "MiB (of U-Net's)",
                    "images/s",
                    "images/s, ONNX",
                ],
                rows,
            ),
            *([] if scored is None else [_scorer(scored)]),
        ]
    )


def _scorer(scored: dict) -> str:
    """The scorer against a plain loop, in a sentence."""
    return (
        f"The scorer reads and scores {scored['images']:,} pairs of 16-bit PNG files of 375 x 1242 under both "
        "KITTI "
        f"protocols in {scored['tenfold_seconds']:.1f} s ({scored['tenfold_cpu_seconds']:.1f} s of CPU time); a "
        "plain numpy "
        f"loop takes {scored['loop_seconds']:.1f} s ({scored['loop_cpu_seconds']:.1f} s). Largest relative "
        "difference of a metric: "
        f"{scored['largest_relative_difference']:.1e}."
    )


def protocols() -> str:
    """One network's predictions under every protocol that fits."""
    found = json.loads((RESULTS / "full-skip-depth-protocols.json").read_text(encoding="utf-8"))
    rows = [
        [row["protocol"], row["what"], f"{row['abs_rel']:.4f}", f"{row['rmse']:.3f}", f"{row['delta1']:.4f}"]
        for row in found["rows"]
    ]
    return "\n\n".join(
        [f"One prediction has many an abs rel: {found['what']}", table(["protocol", "", "abs rel", "RMSE", "δ1"], rows)]
    )


def _weights(levels: dict[str, dict[str, float]]) -> str:
    deepest = levels[max(levels, key=int)]
    return " ".join(f"{weight:.2f}" for weight in deepest.values()) or "-"


def _short(value: object) -> object:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else value


_FILES = {
    "small": "full-skip-depth-small.json",
    "grid": "full-skip-depth-ablations.json",
    "speed": "full-skip-depth-speed.json",
    "protocols": "full-skip-depth-protocols.json",
}
_MAKERS = {"small": small, "grid": grid, "speed": speed, "protocols": protocols}
PARTS = {name: make for name, make in _MAKERS.items() if (RESULTS / _FILES[name]).exists()}
"""Parts of the room's page that are made from results, by the name in the comment before them; those that were run."""
