"""Tables of the cross-modal detector."""

import json

from tables.markdown import RESULTS, claims_of, table
from tenfold.results import Results, load_results


def cases_of(results: Results) -> str:
    """Scores with and without sensors, by arm."""
    found = next(part for part in results.tables if part.id == "cases")
    rows = [[row[0], row[1], *("-" if v is None else f"{v:.3f}" for v in row[2:6])] for row in found.rows]
    return table(["sensors", "arm", *found.columns[2:6]], rows)


def head_of(results: Results, command: str) -> str:
    """How it was measured, in a sentence."""
    environment = results.environment
    return (
        f"`{command}`: {environment['train_frames']} frames to train on, {environment['test_frames']} to test, "
        f"{results.cost.params:,} parameters, {results.cost.seconds / 60:.0f} minutes. {results.summary}"
    )


def small() -> str:
    """Claims and scores of the preset small."""
    results = load_results(RESULTS / "cross-modal-detector-small.json")
    return "\n\n".join(
        [
            head_of(results, "tenfold run cross-modal-detector --preset small --seeds 1"),
            cases_of(results),
            claims_of(results),
        ]
    )


def scratch() -> str:
    """Claims and scores of the preset small-scratch."""
    results = load_results(RESULTS / "cross-modal-detector-small-scratch.json")
    return "\n\n".join(
        [
            head_of(results, "tenfold run cross-modal-detector --preset small-scratch"),
            cases_of(results),
            claims_of(results),
        ]
    )


def _sparse(found: dict) -> list[list[str]]:
    return [
        [f"voxels of {found['points']:,} points ({found['voxels']:,} voxels)", f"{found['voxelize']:.2f}", ""],
        ["sparse encoder", f"{found['sparse encoder']:.2f}", ""],
        ["SECOND and its pyramid, 180 x 180", f"{found['SECOND and its pyramid']:.2f}", ""],
        [
            f"one sparse layer of 16 channels, {found['part voxels']:,} voxels in {found['part']}",
            f"{found['sparse layer with its pairs']:.3f} ({found['sparse layer']:.3f} with known pairs)",
            f"dense conv3d {found['dense conv3d']:.3f}",
        ],
    ]


def speed() -> str:
    """Seconds by part."""
    found = json.loads((RESULTS / "cross-modal-detector-speed.json").read_text(encoding="utf-8"))
    rows: list[list[str]] = []
    if "sparse" in found:
        rows += _sparse(found["sparse"])
    rows += [[f"image network, {name}", f"{value:.2f}", ""] for name, value in found.get("image", {}).items()]
    for name, part in found.get("decoder", {}).items():
        sdpa, plain = part["attention"]["sdpa"], part["attention"]["materialised"]
        rows.append(
            [
                f"cross-attention of a layer, {part['tokens']:,} tokens ({name})",
                f"{sdpa['seconds']:.2f}, {sdpa['peak_mb']:.1f} MiB",
                f"materialised {plain['seconds']:.2f}, {plain['peak_mb']:,.0f} MiB",
            ]
        )
        rows.append([f"six layers ({name})", f"{part['six layers']:.2f}", ""])
    if "step" in found:
        step = found["step"]
        rows += [
            [
                "matching, six layers, four samples of 40 boxes",
                f"{step['matching']:.3f}",
                f"layer by layer {step['matching, layer by layer']:.3f}",
            ],
            ["denoising queries", f"{step['denoising']:.4f}", f"box by box {step['denoising, box by box']:.3f}"],
        ]
    head = (
        "`python benchmarks/cross_modal_detector_speed.py`: CPU seconds on one thread, official size, random weights "
        "(the machine was busy with other work). Memory is that of tensors: workspaces inside a kernel are not seen."
    )
    return head + "\n\n" + table(["part", "here", "beside"], rows)


PARTS = {"small": small, "scratch": scratch, "speed": speed}
