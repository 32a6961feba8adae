"""``robustness``: one table of what a detector keeps when sensors fail, drift or see less."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.cross_modal_detector.cli.scoring import frames_to_test
from tenfold.systems.cross_modal_detector.delivery.models import load
from tenfold.systems.cross_modal_detector.robustness.cases import SensorCase, measure_case, numbers_of, sensor_cases
from tenfold.systems.cross_modal_detector.robustness.corruptions import CORRUPTIONS
from tenfold.systems.cross_modal_detector.sets.frames import Frame, Sample

_SEVERITIES = (1, 2, 3)


def robustness(
    run: str,
    *,
    data: str | None = None,
    root: str | None = None,
    test: str | None = None,
    frames: int | None = None,
    corruptions: bool = True,
    missing: str = "drop",
    seed: int = 0,
    out: str | None = None,
) -> str:
    """Measure a run's detector with and without each sensor, and under ten corruptions in three severities.

    Args:
        run: folder of the run.
        data: name of the data, where not those of the run.
        root: folder of the data.
        test: split, or file below root.
        frames: most test frames to use; all where not given.
        corruptions: also measure the corruptions.
        missing: zero or drop: what the corruptions do about cameras that are lost.
        seed: of what is drawn.
        out: JSON file with all numbers.
    """
    if missing not in ("zero", "drop"):
        raise UserError(f"missing is zero or drop; got {missing!r}")
    if frames is not None and frames < 1:
        raise UserError(f"frames must be at least 1; got {frames}")
    served = load(run)
    splits = frames_to_test(run, served, data=data, root=root, test=test)
    chosen = splits.test[:frames]
    samples = [served.read(frame) for frame in chosen]
    names = [view.name for view in chosen[0].cameras]
    detector = served.detector
    cases = sensor_cases(names, image=detector.image is not None, lidar=detector.lidar is not None, each=True)
    rows: list[dict[str, Any]] = []
    for case in cases:
        scores, _, _ = measure_case(served, chosen, samples, case, splits.protocol)
        rows.append({"case": case.name, "severity": None} | numbers_of(scores))
    before = _before(chosen, samples)
    for corruption in CORRUPTIONS if corruptions else ():
        for severity in _SEVERITIES:
            changed = [corruption(s, severity, seed, b) for s, b in zip(samples, before, strict=True)]
            case = SensorCase(corruption.name, corruption.text, missing, lambda sample: sample)  # type: ignore[arg-type]
            scores, _, _ = measure_case(served, chosen, changed, case, splits.protocol)
            name = f"{corruption.name}, {missing}" if corruption.name.startswith("missing") else corruption.name
            rows.append({"case": name, "severity": severity} | numbers_of(scores))
    whole = float(rows[0]["nds"])
    for row in rows:
        row["nds_kept"] = row["nds"] / whole if whole > 0 else None
    if out is not None:
        write_atomically(out, json.dumps({"frames": len(chosen), "rows": rows, "notes": splits.notes}, indent=1) + "\n")
    return _table(rows, len(chosen))


def _before(frames: Sequence[Frame], samples: Sequence[Sample]) -> list[Sample]:
    """For each frame the one before it in its scene, or itself."""
    return [
        samples[n - 1] if n and frames[n - 1].scene == frame.scene else samples[n] for n, frame in enumerate(frames)
    ]


def _table(rows: Sequence[dict[str, Any]], frames: int) -> str:
    width = max(len(row["case"]) for row in rows) + 2
    lines = [f"{'case':<{width}}{'severity':>9}{'AP at 2 m':>11}{'mAP':>8}{'NDS':>8}{'NDS kept':>10}"]
    for row in rows:
        kept = "" if row["nds_kept"] is None else f"{100 * row['nds_kept']:.0f} %"
        severity = "" if row["severity"] is None else row["severity"]
        lines.append(
            f"{row['case']:<{width}}{severity:>9}{row['ap_2m']:>11.3f}{row['mean_ap']:>8.3f}{row['nds']:>8.3f}{kept:>10}"
        )
    corrupted = [row["nds_kept"] for row in rows if row["severity"] is not None and row["nds_kept"] is not None]
    if corrupted:
        lines.append(f"mean over {len(corrupted)} corruptions: {100 * float(np.mean(corrupted)):.0f} % of NDS kept")
    lines.append(f"{frames} frames; zero: missing sensors are fed as zeros; drop: their tokens are left out")
    return "\n".join(lines)
