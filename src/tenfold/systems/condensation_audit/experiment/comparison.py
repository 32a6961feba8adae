"""The numbers of the page: metrics, plots and tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tenfold.results import Plot, Series, Table
from tenfold.systems.condensation_audit.experiment.outcomes import (
    ARM_NAMES,
    Outcomes,
    accuracies,
    methods_of,
    rates,
    sizes_of,
)
from tenfold.systems.condensation_audit.training.quality import ranking_score

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
    methods = methods_of(outcomes)
    series = []
    for size in sizes_of(outcomes):
        own = [name for name in methods if (name, size) in outcomes.methods]
        values = [accuracies(outcomes, name, size) for name in own]
        series.append(
            Series(
                name=f"{size} per class",
                x=own,
                y=[float(np.mean(row)) for row in values],
                error=[float(np.std(row, ddof=1)) if len(row) > 1 else 0.0 for row in values],
            )
        )
    plots = [
        Plot(
            id="methods",
            title="Accuracy of networks trained on each set",
            kind="bar",
            x_label="method",
            y_label="test accuracy (%)",
            series=series,
            caption="Bars: deviation over seeds of the mean of several "
            "networks. Every set is used with the same training recipe.",
        )
    ]
    if outcomes.attacks:
        names = list(outcomes.attacks)
        bars = [
            ("as the attack left it", "asr"),
            ("same trigger, clean networks", "control"),
            ("as an 8-bit image", "asr_valid"),
            ("as an 8-bit image, clean networks", "control_valid"),
        ]
        plots.append(
            Plot(
                id="attacks",
                title="Success of the triggers",
                kind="bar",
                x_label="attack",
                y_label="images of other classes that become the target (%)",
                series=[
                    Series(
                        name=label,
                        x=[ARM_NAMES[name] for name in names],
                        y=[float(np.mean(rates(outcomes.attacks[name], key))) for name in names],
                    )
                    for label, key in bars
                ],
                caption="A backdoor is what a trigger does above what it does to networks of the clean set, in a form "
                "that an image can hold.",
            )
        )
    for axis, tried in outcomes.ablations.items():
        attacks = list(dict.fromkeys(name for row in tried.values() for name in row))
        lines = []
        for name in attacks:
            for key, what in (("asr_valid", "8-bit"), ("asr", "as left")):
                if name == "naive" and key == "asr":
                    continue  # the same: its trigger is an 8-bit image
                lines.append(
                    Series(
                        name=f"{name}, {what}",
                        x=list(tried),
                        y=[100 * float(np.mean(row[name][key])) for row in tried.values()],
                    )
                )
        plots.append(
            Plot(
                id=f"ablation-{axis}",
                title=f"Success by {axis.replace('_', ' ')}",
                kind="bar",
                x_label=axis.replace("_", " "),
                y_label="success (%)",
                series=lines,
                caption="One seed.",
            )
        )
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
                id="transfer",
                title="Other networks trained on the sets",
                columns=["method", *networks],
                rows=[
                    [method, *(round(100 * float(np.mean(found[name])), 2) for name in networks)]
                    for method, found in outcomes.transfer.items()
                ],
                caption="Test accuracy (%), first seed. The sets were condensed with the run's own network.",
            )
        )
    if outcomes.attack_transfer:
        tables.append(
            Table(
                id="attack-transfer",
                title="Attacks on other networks",
                columns=["attack", "network", "accuracy", "success", "control", "8-bit", "control, 8-bit"],
                rows=[
                    [
                        ARM_NAMES[name],
                        network,
                        *_percent(row, "accuracy", "asr", "control", "asr_valid", "control_valid"),
                    ]
                    for name, networks in outcomes.attack_transfer.items()
                    for network, row in networks.items()
                ],
                caption="In %, first seed: networks of other kinds, trained on the poisoned sets.",
            )
        )
    for axis, values in outcomes.ablations.items():
        tables.append(
            Table(
                id=f"ablation-{axis}",
                title=f"Attacks by {axis.replace('_', ' ')}",
                columns=[axis.replace("_", " "), "attack", "accuracy", "success", "8-bit", "control, 8-bit", "excess"],
                rows=[
                    [
                        value,
                        name,
                        *_percent(row, "accuracy", "asr", "asr_valid", "control_valid"),
                        round(row["excess"], 2),
                    ]
                    for value, attacks in values.items()
                    for name, row in attacks.items()
                ],
                caption="In %, one seed. Excess: how many times the brightest legal value the trigger reaches.",
            )
        )
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
                method,
                size,
                round(float(np.mean(own)), 2),
                round(float(np.std(networks)), 2),
                round(float(np.mean(own) - np.mean(random)), 2),
                None if full is None else round(float(100 * full - np.mean(own)), 2),
                None if score is None else round(score, 4),
                round(float(np.mean([row["seconds"] for row in found])), 2),
                round(100 * float(np.mean([row["outside"] for row in found])), 1),
            ]
        )
    caption = (
        "Deviation: over all networks of all seeds. Gain over random images, gap to all real images"
        + ("" if full is None else f" ({100 * full:.2f} %)")
        + ", and the ranking score made of both (DD-Ranking). Outside: pixels that no 8-bit image can hold, which is "
        "usual for clean condensed sets."
    )
    return Table(
        id="methods",
        title="Condensed and selected sets",
        columns=["method", "per class", "accuracy (%)", "deviation", "gain", "gap", "score", "seconds", "outside (%)"],
        rows=rows,
        caption=caption,
    )


def _attacks_table(outcomes: Outcomes) -> Table:
    columns = (
        "accuracy",
        "control_accuracy",
        "asr",
        "control",
        "asr_valid",
        "control_valid",
        "asr_paper",
        "control_paper",
    )
    rows: list[list[str | float | int | None]] = []
    for name, found in outcomes.attacks.items():
        kinds = [row["kind"] for row in found]
        updates = [row["updates"] for row in found if row["updates"] is not None]
        rows.append(
            [
                ARM_NAMES[name],
                *(round(float(np.mean(rates(found, key))), 2) for key in columns),
                round(float(np.mean([row["excess"] for row in found])), 2),
                max(set(kinds), key=kinds.count),
                f"{sum(row['idle'] for row in found if row['idle'] is not None)} of {sum(updates)}" if updates else "-",
            ]
        )
    return Table(
        id="attacks",
        title="Attacks, with their controls",
        columns=[
            "attack",
            "accuracy",
            "of the clean set",
            "success",
            "control",
            "8-bit",
            "control, 8-bit",
            "success, paper's count",
            "control, paper's count",
            "excess",
            "what it is",
            "updates without a step",
        ],
        rows=rows,
        caption="In %, means over seeds and networks. Control: the same trigger on networks of the clean set. Paper's "
        "count: images of the target class count, too. Where clean networks obey a trigger it is an adversarial patch, "
        "not a backdoor.",
    )


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
        id="defences",
        title="Alarms of the defences",
        columns=["defence", *(ARM_NAMES[arm] for arm in outcomes.detections), "seconds"],
        rows=rows,
        caption="Sets on which a defence raises an alarm, of all seeds; on clean sets every alarm is false. The rates "
        "on many sets are in the table of detection rates.",
    )
