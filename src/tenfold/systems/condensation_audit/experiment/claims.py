"""What the numbers say: the papers' statements, as far as a run measures them."""

import numpy as np

from tenfold.results import Claim, claim
from tenfold.statistics import claim_of_difference, paired_difference
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
                    found = paired_difference(accuracies(outcomes, method, size), accuracies(outcomes, yardstick, size))
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


def _claims_of_attacks(outcomes: Outcomes, options: AttackOptions) -> list[Claim]:
    claims = []
    clean = {name: rates(rows, "control_accuracy") for name, rows in outcomes.attacks.items()}
    for name, rows in outcomes.attacks.items():
        label = ARM_NAMES[name]
        claims.append(
            claim_of_difference(
                f"accuracy-{name}",
                f"{label}: clean accuracy is kept to within 1.5 points",
                paired_difference(rates(rows, "accuracy"), clean[name]),
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
            paired_difference(rates(naive, "asr_valid"), rates(naive, "control_valid")),
            baseline="the same trigger on networks of the clean set",
            unit="points of success",
        )
    )
    excess = float(np.mean([row["excess"] for row in official]))
    claims.append(
        claim(
            "doorping-official",
            f"doorping as published, {options.updated_portion:.1%} poisoned: success close to 100 %",
            value=float(np.mean(rates(official, "asr"))),
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
            paired_difference(rates(official, "asr_valid"), rates(official, "control_valid")),
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
            paired_difference(rates(valid, "asr_valid"), rates(valid, "control_valid")),
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
            if np.mean(attack["asr_valid"]) >= 0.25
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
                    note="Where no calibration fits the sets, the thresholds are provisional and high.",
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
