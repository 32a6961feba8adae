"""What the numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.statistics import claim_of_difference, paired_difference
from tenfold.systems.condensation_audit.quality import ranking_score
from tenfold.systems.condensation_audit.settings import CONDENSERS, AttackOptions

_POINTS = "accuracy points"
_NAMES = {
    "naive": "naive (fixed trigger)",
    "doorping": "doorping, as published",
    "doorping-valid": "doorping, legal pixels",
    "clean": "clean",
}


@dataclass
class Outcomes:
    """What the steps of a run found, each a row per seed.

    Attributes:
        methods: by method and images per class, of ``arms.measure_set``.
        attacks: by attack, of ``redteam.attack_set``.
        detections: by arm (``clean`` and the attacks), of ``redteam.defend``.
        full: accuracy with all real images.
        ablations: by axis and value, the outcome of each attack, one seed.
        transfer: by method and network, accuracies of the first seed.
        attack_transfer: by attack and network, the outcome of the first seed.
    """

    methods: dict[tuple[str, int], list[dict[str, Any]]]
    attacks: dict[str, list[dict[str, Any]]]
    detections: dict[str, list[dict[str, Any]]]
    full: list[dict[str, Any]]
    ablations: dict[str, dict[str, dict[str, Any]]]
    transfer: dict[str, dict[str, list[float]]]
    attack_transfer: dict[str, dict[str, dict[str, Any]]]


def accuracies(outcomes: Outcomes, method: str, size: int) -> list[float]:
    """Mean accuracy over networks in %, seed by seed."""
    return [100 * float(np.mean(row["accuracies"])) for row in outcomes.methods[method, size]]


def rates(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A rate of an attack, mean over networks in %, seed by seed."""
    return [100 * float(np.mean(row[name])) for row in rows]


def _sizes(outcomes: Outcomes) -> list[int]:
    return sorted({size for _, size in outcomes.methods})


def _methods(outcomes: Outcomes) -> list[str]:
    return list(dict.fromkeys(method for method, _ in outcomes.methods))


def claims_of(outcomes: Outcomes, options: AttackOptions) -> list[Claim]:
    """The papers' statements, as far as the run allows to measure them."""
    claims = []
    methods = _methods(outcomes)
    for size in _sizes(outcomes):
        for method in (name for name in methods if name in CONDENSERS):
            for yardstick in ("random", "herding"):
                if yardstick in methods and (yardstick == "random" or method == "dm"):
                    found = paired_difference(accuracies(outcomes, method, size), accuracies(outcomes, yardstick, size))
                    claims.append(
                        claim_of_difference(
                            f"{method}-{yardstick}-{size}",
                            f"{method} beats {yardstick} images at {size} per class, same training",
                            found, baseline=yardstick, unit=_POINTS,
                        )
                    )  # fmt: skip
    if outcomes.attacks:
        claims += _claims_of_attacks(outcomes, options)
    if outcomes.detections:
        claims += _claims_of_defences(outcomes)
    return claims


def _claims_of_attacks(outcomes: Outcomes, options: AttackOptions) -> list[Claim]:
    claims = []
    clean = {name: rates(rows, "control_accuracy") for name, rows in outcomes.attacks.items()}
    for name, rows in outcomes.attacks.items():
        label = _NAMES[name]
        claims.append(
            claim_of_difference(
                f"accuracy-{name}", f"{label}: clean accuracy is kept to within 1.5 points",
                paired_difference(rates(rows, "accuracy"), clean[name]), baseline="the clean set", target=">= -1.5",
                unit=_POINTS,
            )
        )  # fmt: skip
    naive, official, valid = (outcomes.attacks[name] for name in ("naive", "doorping", "doorping-valid"))
    claims.append(
        claim_of_difference(
            "naive-some", f"naive, {options.portion:.1%} poisoned: some success above that on clean networks",
            paired_difference(rates(naive, "asr_valid"), rates(naive, "control_valid")),
            baseline="the same trigger on networks of the clean set", unit="points of success",
        )
    )  # fmt: skip
    excess = float(np.mean([row["excess"] for row in official]))
    claims.append(
        claim(
            "doorping-official",
            f"doorping as published, {options.updated_portion:.1%} poisoned: success close to 100 %",
            value=float(np.mean(rates(official, "asr"))), target=">= 95", unit="% of images of other classes",
            baseline=f"on networks of the clean set: {np.mean(rates(official, 'control')):.0f} %",
            note=f"Its trigger leaves the pixel range by a factor of {excess:.0f}: no image file can hold it.",
        )
    )  # fmt: skip
    claims.append(
        claim_of_difference(
            "doorping-as-file", "doorping as published still works when the trigger is saved as an 8-bit image",
            paired_difference(rates(official, "asr_valid"), rates(official, "control_valid")), target=">= 20",
            baseline="the same trigger on networks of the clean set", unit="points of success",
            note=f"In floating point the same trigger, {excess:.0f} times the brightest legal value, has "
            f"{np.mean(rates(official, 'asr')):.0f} % (on clean networks {np.mean(rates(official, 'control')):.0f} %).",
        )
    )  # fmt: skip
    claims.append(
        claim_of_difference(
            "doorping-legal", "doorping kept to legal pixels succeeds above that on clean networks",
            paired_difference(rates(valid, "asr_valid"), rates(valid, "control_valid")),
            baseline="the same trigger on networks of the clean set", unit="points of success",
            note=f"It poisons {options.updated_portion:.1%} of the images; naive {options.portion:.1%}.",
        )
    )  # fmt: skip
    return claims


def _claims_of_defences(outcomes: Outcomes) -> list[Claim]:
    """What the audit's own detectors are for: they see what is there, and nothing where nothing is."""
    clean = outcomes.detections["clean"]
    claims = []
    if all("patch scan" in row for row in clean):
        alarms = [row["patch scan"]["flagged"] for row in clean]
        claims.append(
            claim(
                "scan-false-alarms", "the patch scan raises no alarm on clean sets", value=float(sum(alarms)),
                target="== 0", unit=f"of {len(alarms)} clean sets", baseline="clean sets",
            )
        )  # fmt: skip
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
                    "scan-detects", "the patch scan names the class of every legal trigger that succeeds 25 % or more",
                    value=hits / len(strong), target="== 1", unit=f"of {len(strong)} sets", baseline="poisoned sets",
                    note="Where no calibration fits the sets, the thresholds are provisional and high.",
                )
            )  # fmt: skip
    if all("range guard" in row for row in outcomes.detections.get("doorping", [])):
        found = outcomes.detections["doorping"]
        claims.append(
            claim(
                "range-guard", "the range guard refuses the trigger of doorping as published",
                value=float(np.mean([row["range guard"]["flagged"] for row in found])), target="== 1",
                unit=f"of {len(found)} triggers", baseline="no guard",
            )
        )  # fmt: skip
    return claims


# --- numbers of the page --------------------------------------------------------------------------------------------


def metrics_of(outcomes: Outcomes) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, by arm."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for method, size in outcomes.methods:
        own = accuracies(outcomes, method, size)
        found[f"{method}, {size} per class"] = {"accuracy": float(np.mean(own)), "accuracy_by_seed": [*own]}
    if outcomes.full:
        found["all real images"] = {"accuracy": 100 * float(np.mean([row["accuracy"] for row in outcomes.full]))}
    for name, rows in outcomes.attacks.items():
        found[name] = {
            key: float(np.mean(rates(rows, key)))
            for key in ("accuracy", "asr", "asr_paper", "asr_valid", "control", "control_paper", "control_valid")
        }
        found[name]["excess"] = float(np.mean([row["excess"] for row in rows]))
    return found


def plots_of(outcomes: Outcomes) -> list[Plot]:
    """Accuracy by method, success by attack, detection scores, ablations."""
    methods = _methods(outcomes)
    series = []
    for size in _sizes(outcomes):
        own = [name for name in methods if (name, size) in outcomes.methods]
        values = [accuracies(outcomes, name, size) for name in own]
        series.append(
            Series(
                name=f"{size} per class", x=own, y=[float(np.mean(row)) for row in values],
                error=[float(np.std(row, ddof=1)) if len(row) > 1 else 0.0 for row in values],
            )
        )  # fmt: skip
    plots = [
        Plot(
            id="methods", title="Accuracy of networks trained on each set", kind="bar", x_label="method",
            y_label="test accuracy (%)", series=series, caption="Bars: deviation over seeds of the mean of several "
            "networks. Every set is used with the same training recipe.",
        )
    ]  # fmt: skip
    if outcomes.attacks:
        names = list(outcomes.attacks)
        bars = [
            ("as the attack left it", "asr"), ("same trigger, clean networks", "control"),
            ("as an 8-bit image", "asr_valid"), ("as an 8-bit image, clean networks", "control_valid"),
        ]  # fmt: skip
        plots.append(
            Plot(
                id="attacks", title="Success of the triggers", kind="bar", x_label="attack",
                y_label="images of other classes that become the target (%)",
                series=[
                    Series(
                        name=label, x=[_NAMES[name] for name in names],
                        y=[float(np.mean(rates(outcomes.attacks[name], key))) for name in names],
                    )
                    for label, key in bars
                ],
                caption="A backdoor is what a trigger does above what it does to networks of the clean set, in a form "
                "that an image can hold.",
            )
        )  # fmt: skip
    for axis, tried in outcomes.ablations.items():
        attacks = list(dict.fromkeys(name for row in tried.values() for name in row))
        lines = []
        for name in attacks:
            for key, what in (("asr_valid", "8-bit"), ("asr", "as left")):
                if name == "naive" and key == "asr":
                    continue  # the same: its trigger is an 8-bit image
                lines.append(
                    Series(
                        name=f"{name}, {what}", x=list(tried),
                        y=[100 * float(np.mean(row[name][key])) for row in tried.values()],
                    )
                )  # fmt: skip
        plots.append(
            Plot(
                id=f"ablation-{axis}", title=f"Success by {axis.replace('_', ' ')}", kind="bar",
                x_label=axis.replace("_", " "), y_label="success (%)", series=lines, caption="One seed.",
            )
        )  # fmt: skip
    return plots


def tables_of(outcomes: Outcomes) -> list[Table]:
    """The numbers behind the plots."""
    tables = [_methods_table(outcomes)]
    if outcomes.attacks:
        tables.append(_attacks_table(outcomes))
    if outcomes.detections:
        tables.append(_defences_table(outcomes))
    if outcomes.transfer:
        networks = list(next(iter(outcomes.transfer.values())))
        tables.append(
            Table(
                id="transfer", title="Other networks trained on the sets", columns=["method", *networks],
                rows=[
                    [method, *(round(100 * float(np.mean(found[name])), 2) for name in networks)]
                    for method, found in outcomes.transfer.items()
                ],
                caption="Test accuracy (%), first seed. The sets were condensed with the run's own network.",
            )
        )  # fmt: skip
    if outcomes.attack_transfer:
        tables.append(
            Table(
                id="attack-transfer", title="Attacks on other networks",
                columns=["attack", "network", "accuracy", "success", "control", "8-bit", "control, 8-bit"],
                rows=[
                    [_NAMES[name], network,
                     *_percent(row, "accuracy", "asr", "control", "asr_valid", "control_valid")]
                    for name, networks in outcomes.attack_transfer.items()
                    for network, row in networks.items()
                ],
                caption="In %, first seed: networks of other kinds, trained on the poisoned sets.",
            )
        )  # fmt: skip
    for axis, values in outcomes.ablations.items():
        tables.append(
            Table(
                id=f"ablation-{axis}", title=f"Attacks by {axis.replace('_', ' ')}",
                columns=[axis.replace("_", " "), "attack", "accuracy", "success", "8-bit", "control, 8-bit", "excess"],
                rows=[
                    [value, name, *_percent(row, "accuracy", "asr", "asr_valid", "control_valid"),
                     round(row["excess"], 2)]
                    for value, attacks in values.items()
                    for name, row in attacks.items()
                ],
                caption="In %, one seed. Excess: how many times the brightest legal value the trigger reaches.",
            )
        )  # fmt: skip
    return tables


def _percent(row: Mapping[str, Any], *names: str) -> list[float]:
    return [round(100 * float(np.mean(row[name])), 2) for name in names]


def _methods_table(outcomes: Outcomes) -> Table:
    full = float(np.mean([row["accuracy"] for row in outcomes.full])) if outcomes.full else None
    rows: list[list[str | float | int | None]] = []
    for method, size in outcomes.methods:
        own = accuracies(outcomes, method, size)
        random = accuracies(outcomes, "random", size)
        found = outcomes.methods[method, size]
        networks = [100 * value for row in found for value in row["accuracies"]]
        score = None if full is None else ranking_score(float(np.mean(own)) / 100, float(np.mean(random)) / 100, full)
        rows.append(
            [
                method, size, round(float(np.mean(own)), 2), round(float(np.std(networks)), 2),
                round(float(np.mean(own) - np.mean(random)), 2),
                None if full is None else round(float(100 * full - np.mean(own)), 2),
                None if score is None else round(score, 4),
                round(float(np.mean([row["seconds"] for row in found])), 2),
                round(100 * float(np.mean([row["outside"] for row in found])), 1),
            ]
        )  # fmt: skip
    caption = (
        "Deviation: over all networks of all seeds. Gain over random images, gap to all real images"
        + ("" if full is None else f" ({100 * full:.2f} %)")
        + ", and the ranking score made of both (DD-Ranking). Outside: pixels that no 8-bit image can hold, which is "
        "usual for clean condensed sets."
    )
    return Table(
        id="methods", title="Condensed and selected sets",
        columns=["method", "per class", "accuracy (%)", "deviation", "gain", "gap", "score", "seconds", "outside (%)"],
        rows=rows, caption=caption,
    )  # fmt: skip


def _attacks_table(outcomes: Outcomes) -> Table:
    columns = ("accuracy", "control_accuracy", "asr", "control", "asr_valid", "control_valid", "asr_paper",
               "control_paper")  # fmt: skip
    rows: list[list[str | float | int | None]] = []
    for name, found in outcomes.attacks.items():
        kinds = [row["kind"] for row in found]
        updates = [row["updates"] for row in found if row["updates"] is not None]
        rows.append(
            [
                _NAMES[name], *(round(float(np.mean(rates(found, key))), 2) for key in columns),
                round(float(np.mean([row["excess"] for row in found])), 2),
                max(set(kinds), key=kinds.count),
                f"{sum(row['idle'] for row in found if row['idle'] is not None)} of {sum(updates)}" if updates else "-",
            ]
        )  # fmt: skip
    return Table(
        id="attacks", title="Attacks, with their controls",
        columns=["attack", "accuracy", "of the clean set", "success", "control", "8-bit", "control, 8-bit",
                 "success, paper's count", "control, paper's count", "excess", "what it is", "updates without a step"],
        rows=rows,
        caption="In %, means over seeds and networks. Control: the same trigger on networks of the clean set. Paper's "
        "count: images of the target class count, too. Where clean networks obey a trigger it is an adversarial patch, "
        "not a backdoor.",
    )  # fmt: skip


def _defences_table(outcomes: Outcomes) -> Table:
    names = list(dict.fromkeys(name for rows in outcomes.detections.values() for row in rows for name in row))
    rows: list[list[str | float | int | None]] = []
    for name in names:
        cells: list[str | float | int | None] = [name]
        for found in outcomes.detections.values():
            own = [row[name] for row in found if name in row]
            cells.append(f"{sum(row['flagged'] for row in own)} of {len(own)}" if own else None)
        seconds = [row[name]["seconds"] for found in outcomes.detections.values() for row in found if name in row]
        rows.append([*cells, round(float(np.mean(seconds)), 2)])
    return Table(
        id="defences", title="Alarms of the defences",
        columns=["defence", *(_NAMES[arm] for arm in outcomes.detections), "seconds"], rows=rows,
        caption="Sets on which a defence raises an alarm, of all seeds; on clean sets every alarm is false. The rates "
        "on many sets are in the table of detection rates.",
    )  # fmt: skip
