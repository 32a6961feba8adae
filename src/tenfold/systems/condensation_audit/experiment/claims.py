"""What the numbers say: the papers' statements, as far as a run measures them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.arms import PairedDifference, claim_of_difference, paired_bootstrap, paired_difference
from tenfold.results import Claim, claim
from tenfold.systems.condensation_audit.experiment.outcomes import (
    ARM_NAMES,
    Outcomes,
    accuracies,
    methods_of,
    rates,
    sizes_of,
)
from tenfold.systems.condensation_audit.experiment.settings import AttackOptions
from tenfold.systems.condensation_audit.names import CONDENSERS

_POINTS = "accuracy points"


def claims_of(outcomes: Outcomes, options: AttackOptions) -> list[Claim]:
    """The papers' statements, as far as the run allows to measure them."""
    claims = []
    methods = methods_of(outcomes)
    for size in sizes_of(outcomes):
        for method in (name for name in methods if name in CONDENSERS):
            for yardstick in ("random", "herding"):
                if yardstick in methods and (yardstick == "random" or method == "dm"):
                    rows, others = outcomes.methods[method, size], outcomes.methods[yardstick, size]
                    found = _difference(
                        accuracies(outcomes, method, size),
                        accuracies(outcomes, yardstick, size),
                        rows[0].get("by_image"),
                        others[0].get("by_image"),
                    )
                    claims.append(
                        claim_of_difference(
                            f"{method}-{yardstick}-{size}",
                            f"{method} beats {yardstick} images at {size} per class, same training",
                            found,
                            baseline=yardstick,
                            unit=_POINTS,
                        )
                    )
    if outcomes.attacks:
        claims += _claims_of_attacks(outcomes, options)
    if outcomes.detections:
        claims += _claims_of_defences(outcomes)
    return claims


def _difference(ours: list[float], baseline: list[float], by_image: Any, other_by_image: Any) -> PairedDifference:
    """Paired over seeds; with one seed over test images, where they are there image by image in [0, 1]."""
    if len(ours) > 1 or not by_image or not other_by_image:
        return paired_difference(ours, baseline)
    return paired_bootstrap(by_image, other_by_image).times(100)


def _of_rates(rows: Sequence[Mapping[str, Any]], name: str, baseline: str | None) -> PairedDifference:
    """A rate of an attack above another one, or above nothing, in points."""
    by_image = rows[0].get("by_image", {})
    mine = by_image.get(name)
    ours = rates(rows, name)
    if baseline is None:
        return _difference(ours, [0.0] * len(ours), mine, [0.0] * len(mine) if mine else None)
    return _difference(ours, rates(rows, baseline), mine, by_image.get(baseline))


def summary_of(outcomes: Outcomes, options: AttackOptions, images: int) -> str:
    """What a reader gets, in one sentence of measured numbers.

    Args:
        outcomes: of the run.
        options: of its attacks.
        images: real images that were condensed.
    """
    size, method = options.images_per_class, options.method
    parts = []
    if (method, size) in outcomes.methods:
        reached, random = (np.mean(accuracies(outcomes, name, size)) for name in (method, "random"))
        sentence = f"{size} images per class by {method} reach {reached:.1f} %, {size} random ones {random:.1f} %"
        if outcomes.full:
            full = 100 * np.mean([row["accuracy"] for row in outcomes.full])
            sentence += f", all {images:,} real ones {full:.1f} %"
        parts.append(sentence)
    scans = {
        name: [row["patch scan"] for row in rows if "patch scan" in row] for name, rows in outcomes.detections.items()
    }
    if scans.get("clean"):
        working = [
            row
            for name, rows in scans.items()
            if name != "clean"
            for row, attack in zip(rows, outcomes.attacks[name], strict=True)
            if np.mean(attack["asr_valid"]) >= NOTICEABLE
        ]
        alarms = sum(row["flagged"] for row in scans["clean"])
        hits = sum(bool(row["flagged"] and row["right"]) for row in working)
        found = f"names the class of {hits} of {len(working)} sets whose trigger works as an image file"
        parts.append(
            f"the patch scan {found if working else 'had no set whose trigger works as an image file'}, and raises "
            f"{alarms} false alarms on {len(scans['clean'])} clean sets"
        )
    return "; ".join(parts) + "." if parts else ""


NOTICEABLE = 0.25
"""Success from which on a trigger is said to work."""


def _claims_of_attacks(outcomes: Outcomes, options: AttackOptions) -> list[Claim]:
    claims = []
    for name, rows in outcomes.attacks.items():
        label = ARM_NAMES[name]
        claims.append(
            claim_of_difference(
                f"accuracy-{name}",
                f"{label}: clean accuracy is kept to within 1.5 points",
                _of_rates(rows, "accuracy", "control_accuracy"),
                baseline="the clean set",
                target=">= -1.5",
                unit=_POINTS,
            )
        )
    naive, official, valid = (outcomes.attacks[name] for name in ("naive", "doorping", "doorping-valid"))
    claims.append(
        claim_of_difference(
            "naive-some",
            f"naive, {options.portion:.1%} poisoned: some success above that on clean networks",
            _of_rates(naive, "asr_valid", "control_valid"),
            baseline="the same trigger on networks of the clean set",
            unit="points of success",
        )
    )
    reached = _of_rates(official, "asr", None)
    excess = float(np.mean([row["excess"] for row in official]))
    claims.append(
        claim(
            "doorping-official",
            f"doorping as published, {options.updated_portion:.1%} poisoned: success close to 100 %",
            value=reached.mean,
            interval=reached.interval,
            target=">= 95",
            unit="% of images of other classes",
            baseline=f"on networks of the clean set: {np.mean(rates(official, 'control')):.0f} %",
            note=f"Its trigger leaves the pixel range by a factor of {excess:.0f}: no image file can hold it.",
        )
    )
    claims.append(
        claim_of_difference(
            "doorping-as-file",
            "doorping as published still works when the trigger is saved as an 8-bit image",
            _of_rates(official, "asr_valid", "control_valid"),
            target=">= 20",
            baseline="the same trigger on networks of the clean set",
            unit="points of success",
            note=f"In floating point the same trigger, {excess:.0f} times the brightest legal value, has "
            f"{np.mean(rates(official, 'asr')):.0f} % (on clean networks {np.mean(rates(official, 'control')):.0f} %).",
        )
    )
    claims.append(
        claim_of_difference(
            "doorping-legal",
            "doorping kept to legal pixels succeeds above that on clean networks",
            _of_rates(valid, "asr_valid", "control_valid"),
            baseline="the same trigger on networks of the clean set",
            unit="points of success",
            note=f"It poisons {options.updated_portion:.1%} of the images; naive {options.portion:.1%}.",
        )
    )
    return claims


def _claims_of_defences(outcomes: Outcomes) -> list[Claim]:
    """What the audit's own detectors are for: they see what is there, and nothing where nothing is."""
    clean = outcomes.detections["clean"]
    claims = []
    if all("patch scan" in row for row in clean):
        alarms = [row["patch scan"]["flagged"] for row in clean]
        claims.append(
            claim(
                "scan-false-alarms",
                "the patch scan raises no alarm on clean sets",
                value=float(sum(alarms)),
                target="== 0",
                unit=f"of {len(alarms)} clean sets",
                baseline="clean sets",
            )
        )
        strong = [
            row["patch scan"]
            for name, rows in outcomes.detections.items()
            if name != "clean"
            for row, attack in zip(rows, outcomes.attacks[name], strict=True)
            if np.mean(attack["asr_valid"]) >= NOTICEABLE
        ]
        if strong:
            hits = sum(row["flagged"] and row["right"] for row in strong)
            claims.append(
                claim(
                    "scan-detects",
                    "the patch scan names the class of every legal trigger that succeeds 25 % or more",
                    value=hits / len(strong),
                    target="== 1",
                    unit=f"of {len(strong)} sets",
                    baseline="poisoned sets",
                    note="Where no calibration fits the sets, the thresholds are provisional.",
                )
            )
    if all("range guard" in row for row in outcomes.detections.get("doorping", [])):
        found = outcomes.detections["doorping"]
        claims.append(
            claim(
                "range-guard",
                "the range guard refuses the trigger of doorping as published",
                value=float(np.mean([row["range guard"]["flagged"] for row in found])),
                target="== 1",
                unit=f"of {len(found)} triggers",
                baseline="no guard",
            )
        )
    return claims
