"""Tables of the results page."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from tenfold.arms import Outcomes, Runs, mean, spread
from tenfold.results import Table
from tenfold.systems.activation_uncertainty.experiment.comparison import common_rows, mean_of, values


def tables_of(outcomes: Outcomes, extra: Mapping[str, Any], delivered: Mapping[str, Any]) -> list[Table]:
    """One table of all rows per task, layers, buckets, costs, ablations, and the delivered estimator."""
    tables = []
    for task, runs in outcomes.items():
        tables.append(_rows_table(task, runs))
        tables.append(_layers_table(task, runs))
    tables += [_buckets_table(outcomes), _costs_table(outcomes), _held_out_table(outcomes)]
    if "ablations" in extra:
        tables += _ablation_tables(extra["ablations"])
    tables.append(
        Table(
            id="delivered",
            title="The delivered estimator",
            columns=["layers", "R2", "Spearman", "mean ratio", "multiply-adds", "main model's"],
            rows=[
                [
                    ", ".join(delivered["layers"]),
                    round(delivered["r2"], 4),
                    round(delivered["spearman"], 4),
                    round(delivered["ratio"], 3),
                    delivered["estimator_multiply_adds"],
                    delivered["multiply_adds"],
                ]
            ],
            caption="First seed, on the test rows.",
        )
    )
    return tables


def _r2_of(row: str, run: Mapping[str, Any]) -> float:
    return run["rows"][row]["r2"]


def _rows_table(task: str, runs: Runs) -> Table:
    rows: list[list[str | float | int | None]] = []
    for row in common_rows(runs):
        deviation = spread(runs, partial(_r2_of, row))
        equivalent = float(np.exp(np.mean(np.log(values(runs, row, "equivalent_passes")))))
        sign = "≥ " if all(run["rows"][row]["at_least"] for run in runs) else ""
        rows.append(
            [
                row,
                round(mean_of(runs, row), 4),
                None if deviation is None else round(deviation, 4),
                round(mean_of(runs, row, "spearman"), 3),
                round(mean_of(runs, row, "auc_top"), 3),
                round(mean_of(runs, row, "auc_bottom"), 3),
                round(mean_of(runs, row, "ratio"), 3),
                f"{sign}{equivalent:.0f}",
            ]
        )
    ceiling = mean(runs, "ceiling")
    return Table(
        id=f"rows-{task}",
        title=f"{task}: estimates of dropout uncertainty against independent labels",
        columns=["estimate", "R2", "± seeds", "Spearman", "AUC top fifth", "AUC bottom fifth", "mean ratio", "passes"],
        rows=rows,
        caption=f"Means over {len(runs)} seeds. Noise ceiling (labels against labels): R2 {ceiling:.3f}; a perfect "
        f"estimate scores about {(1 + ceiling) / 2:.3f}. Passes: Monte-Carlo passes of the same R2 (T-equivalent); 2 "
        "means 2 or fewer.",
    )


def _layers_table(task: str, runs: Runs) -> Table:
    first = runs[0]
    return Table(
        id=f"layers-{task}",
        title=f"{task}: subsets of layers",
        columns=["layers", "how", "features", "multiply-adds", "R2 on validation rows", "chosen"],
        rows=[
            [
                ", ".join(layer["names"]),
                layer["kind"],
                layer["features"],
                layer["multiply_adds"],
                round(layer["r2"], 4),
                "yes" if layer["names"] == first["chosen"] else "",
            ]
            for layer in first["layers"]
        ],
        caption="First seed. Chosen: the cheapest within the tolerance of all layers on validation rows.",
    )


def _buckets_table(outcomes: Outcomes) -> Table:
    def mean_auc(runs: Runs, k: int) -> float | None:
        values = [run["bucket_aucs"][k] for run in runs if run["bucket_aucs"][k] is not None]
        return round(float(np.mean(values)), 3) if values else None

    return Table(
        id="buckets",
        title="Buckets of uncertainty: area under the ROC curve of each against the rest",
        columns=["task", "lowest", "2", "3", "4", "highest"],
        rows=[[task, *(mean_auc(runs, k) for k in range(5))] for task, runs in outcomes.items()],
        caption="Five buckets of equal frequency, classified from all layers (paper B, which reports 0.92 for the "
        "lowest and 0.89 for the highest bucket of ensemble variation).",
    )


def _costs_table(outcomes: Outcomes) -> Table:
    rows: list[list[str | float | int | None]] = []
    for task, runs in outcomes.items():
        costs = runs[0]["costs"]
        main, suffix, own = costs["main"], costs["suffix"], costs["chosen_estimator"]
        everything = runs[0]["rows"]["all layers"]["multiply_adds"]
        rows.append(
            [
                task,
                main,
                round((main + own) / main, 3),
                round((main + everything) / main, 3),
                round((main + 19 * suffix) / main, 2),
                20.0,
            ]
        )
    return Table(
        id="costs",
        title="Multiply-adds of a prediction with uncertainty over a plain one",
        columns=["task", "plain", "chosen layers", "all layers", "T = 20, prefix cached", "T = 20"],
        rows=rows,
        caption="Wall-clock times, side by side, are in the system's README.",
    )


def _held_out_table(outcomes: Outcomes) -> Table:
    kinds = ("training rows", "held-out rows")
    found = [
        (task, *(mean(runs, lambda run, kind=kind: run["mean_uncertainty"][kind]) for kind in kinds))  # type: ignore[misc]
        for task, runs in outcomes.items()
    ]
    return Table(
        id="held-out",
        title="Mean uncertainty of rows that trained the main model and of rows that did not",
        columns=["task", "training rows", "held-out rows", "ratio"],
        rows=[[task, float(f"{a:.4g}"), float(f"{b:.4g}"), round(a / b, 3)] for task, a, b in found],
        caption="A main model is surer of what it has seen: an estimator fitted on training rows would be too low.",
    )


_ABLATIONS = {
    "rates": ("Dropout rates", "Main models trained and labelled at each rate; first seed."),
    "places": ("Places of dropout in the passes", "The same main model; only some of its dropout is random."),
    "label_passes": (
        "Passes of the labels, by loss",
        "R2 and mean ratio of estimate and label against T = 100. With few passes the standard deviation is too small: "
        "mse_std learns that.",
    ),
    "rows": ("Auxiliary rows", "R2 of all layers by the number of rows that the estimator is fitted on."),
    "shift": (
        "Rotated test images",
        "Labels are made for the rotated images. Outside: share of features outside the auxiliary range; far: share of "
        "images that the range check reports.",
    ),
    "training_rows": ("Fitted on training or on held-out rows", "As many rows of each; measured on test rows."),
}


def _ablation_tables(ablations: Mapping[str, Any]) -> list[Table]:
    tables = []
    for id, (title, caption) in _ABLATIONS.items():
        rows = ablations.get(id)
        if rows:
            cells = [[round(v, 4) if isinstance(v, float) else v for v in row.values()] for row in rows]
            tables.append(
                Table(
                    id=f"ablation-{id}",
                    title=title,
                    columns=[column.replace("_", " ") for column in rows[0]],
                    rows=cells,
                    caption=caption,
                )
            )
    return tables
