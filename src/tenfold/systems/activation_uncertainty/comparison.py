"""What the rows say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.statistics import claim_of_difference, paired_difference
from tenfold.systems.activation_uncertainty.rows import MC_PASSES

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each task, what :func:`~tenfold.systems.activation_uncertainty.recipe.measure` found, seed by seed."""

_R2 = "points of R2"
_FAMILIES = ("all layers", "chosen layers", "all layers, on/off")


def _values(runs: Sequence[Mapping[str, Any]], row: str, number: str = "r2") -> list[float]:
    return [float(run["rows"][row][number]) for run in runs]


def _mean(runs: Sequence[Mapping[str, Any]], row: str, number: str = "r2") -> float:
    return float(np.mean(_values(runs, row, number)))


def _common_rows(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row for row in runs[0]["rows"] if all(row in run["rows"] for run in runs)]


def claims_of(outcomes: Outcomes, extra: Mapping[str, Any], delivered: Mapping[str, Any]) -> list[Claim]:
    """The papers' statements, as far as the run allows to measure them."""
    claims: list[Claim] = []
    for task, runs in outcomes.items():
        claims += _claims_of_task(task, runs)
    changed = sum(run["changed_predictions"] for runs in outcomes.values() for run in runs)
    claims.append(
        claim(
            "same-predictions",
            "Estimating uncertainty changes no prediction of the main model by a bit",
            value=changed,
            target="== 0",
            unit="numbers that differ",
            baseline="the main model alone",
        )
    )
    if "joint" in extra:
        claims += _claims_of_joint(extra["joint"])
    if "ensemble" in extra:
        claims += _claims_of_ensemble(extra["ensemble"])
    return claims


def _claims_of_task(task: str, runs: Sequence[Mapping[str, Any]]) -> list[Claim]:
    equivalents = _values(runs, "all layers", "equivalent_passes")
    bounded = any(run["rows"]["all layers"]["at_least"] for run in runs)
    best = max(_common_rows(runs), key=lambda row: _mean(runs, row) if not row.startswith("Monte") else -np.inf)

    def compare(id: str, statement: str, ours: str, other: str, target: str, note: str = "") -> Claim:
        found = paired_difference(_values(runs, ours), _values(runs, other))
        return claim_of_difference(
            f"{id}-{task}", f"{task}: {statement}", found, baseline=other, target=target, unit=_R2, note=note
        )

    note = f"At least: {MC_PASSES[-1]} is the most that was measured." if bounded else ""
    claims = [
        claim(
            f"equivalent-{task}",
            f"{task}: one pass with all layers is worth 20 Monte-Carlo passes or more",
            value=float(np.exp(np.mean(np.log(equivalents)))),
            target=">= 20",
            unit="passes",
            baseline="Monte-Carlo dropout",
            interval=(min(equivalents), max(equivalents)) if len(equivalents) > 1 else None,
            note=f"{note} The interval is the range over seeds.".strip() if len(equivalents) > 1 else note,
        ),
        compare(
            "subset", "a chosen subset of layers is within 0.01 of all", "chosen layers", "all layers", ">= -0.01"
        ),
        compare(
            "strength", "how strongly units fire tells more than whether they do", "all layers", "all layers, on/off",
            "> 0",
        ),
    ]  # fmt: skip
    prediction = next(row for row in runs[0]["rows"] if row.startswith("prediction only"))
    claims.append(compare("prediction", "activations tell more than the prediction", "all layers", prediction, "> 0"))
    if "logits" in runs[0]["rows"]:
        claims.append(
            compare("logits", "the chosen activations tell at least as much as the logits", "chosen layers", "logits",
                    ">= 0", note=f"Best of all learned and analytic rows: {best} ({_mean(runs, best):.3f}).")
        )  # fmt: skip
    moments = "moment propagation, calibrated"
    if moments in runs[0]["rows"]:
        claims.append(
            compare("moments", "the chosen activations tell at least as much as calibrated moment propagation",
                    "chosen layers", moments, ">= 0")
        )  # fmt: skip
    return claims


def _claims_of_joint(joint: Mapping[str, Any]) -> list[Claim]:
    return [
        claim(
            "joint-unchanged",
            "Joint training with a stop-gradient leaves the main model as training without it does",
            value=joint["differing_weights"],
            target="== 0",
            unit="weights that differ",
            baseline="the main model trained alone",
        ),
        claim(
            "joint-start",
            "An estimator trained jointly needs fewer rows afterwards: after a short fit it is better than post hoc "
            f"with the same loss on the same {joint['rows']} rows",
            value=joint["joint, short fit"]["r2"] - joint["post hoc, same rows and loss"]["r2"],
            target="> 0",
            unit=_R2,
            baseline="post-hoc estimator, same rows and loss",
            note=f"One seed. R2 {joint['joint, short fit']['r2']:.3f} against "
            f"{joint['post hoc, same rows and loss']['r2']:.3f}; before the short fit {joint['joint']['r2']:.3f}. Post "
            f"hoc with labels of many passes and the loss for them, mse_std: {joint['post hoc, same rows']['r2']:.3f}.",
        ),
    ]


def _claims_of_ensemble(ensemble: Mapping[str, Any]) -> list[Claim]:
    both, one = ensemble["initialisation and order"], ensemble["initialisation"]
    where = f"{ensemble['task']}, {ensemble['members']} members"
    return [
        claim(
            "ensemble",
            f"Activations of one member estimate the spread of an ensemble ({where})",
            value=both["r2"],
            target="> 0",
            unit="R2",
            baseline="the mean spread for every input",
            note="Paper B reports 0.56 on MovieLens and 0.81 on Criteo, with other models, members and splits.",
        ),
        claim(
            "ensemble-sources",
            f"More sources of randomness spread an ensemble further ({where})",
            value=100 * (both["mean_spread"] / one["mean_spread"] - 1),
            target="> 0",
            unit="% more mean spread",
            baseline="members that differ in initialisation alone",
        ),
        claim(
            "ensemble-mean",
            f"The mean of the ensemble predicts better than its member ({where})",
            value=100 * (1 - both["error_of_mean"] / both["error_of_member"]),
            target="> 0",
            unit="% less error",
            baseline="the served member",
        ),
    ]


def metrics_of(outcomes: Outcomes, extra: Mapping[str, Any]) -> dict[str, dict[str, float | list[float | None] | None]]:
    """For each task and row, means over seeds."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for task, runs in outcomes.items():
        for row in _common_rows(runs):
            numbers = ("r2", "spearman", "auc_top", "auc_bottom", "ratio", "equivalent_passes")
            found[f"{task}: {row}"] = {
                **{number: _mean(runs, row, number) for number in numbers},
                "r2_by_seed": [*_values(runs, row)],
            }
        found[f"{task}: labels"] = {
            "noise_ceiling": float(np.mean([run["ceiling"] for run in runs])),
            "main_error": float(np.mean([run["error"] for run in runs])),
        }
    for name, numbers in extra.get("joint", {}).items():
        if isinstance(numbers, Mapping):
            found[name] = dict(numbers)
    for name, numbers in extra.get("ensemble", {}).items():
        if isinstance(numbers, Mapping):
            found[f"ensemble by {name}"] = dict(numbers)
    return found


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
            rows=[[
                ", ".join(delivered["layers"]), round(delivered["r2"], 4), round(delivered["spearman"], 4),
                round(delivered["ratio"], 3), delivered["estimator_multiply_adds"], delivered["multiply_adds"],
            ]],
            caption="First seed, on the test rows.",
        )
    )  # fmt: skip
    return tables


def _rows_table(task: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    rows: list[list[str | float | int | None]] = []
    for row in _common_rows(runs):
        values = _values(runs, row)
        equivalent = float(np.exp(np.mean(np.log(_values(runs, row, "equivalent_passes")))))
        sign = "≥ " if all(run["rows"][row]["at_least"] for run in runs) else ""
        rows.append(
            [
                row,
                round(float(np.mean(values)), 4),
                round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
                round(_mean(runs, row, "spearman"), 3),
                round(_mean(runs, row, "auc_top"), 3),
                round(_mean(runs, row, "auc_bottom"), 3),
                round(_mean(runs, row, "ratio"), 3),
                f"{sign}{equivalent:.0f}",
            ]
        )
    ceiling = float(np.mean([run["ceiling"] for run in runs]))
    return Table(
        id=f"rows-{task}",
        title=f"{task}: estimates of dropout uncertainty against independent labels",
        columns=["estimate", "R2", "± seeds", "Spearman", "AUC top fifth", "AUC bottom fifth", "mean ratio", "passes"],
        rows=rows,
        caption=f"Means over {len(runs)} seeds. Noise ceiling (labels against labels): R2 {ceiling:.3f}; a perfect "
        f"estimate scores about {(1 + ceiling) / 2:.3f}. Passes: Monte-Carlo passes of the same R2 (T-equivalent); 2 "
        "means 2 or fewer.",
    )


def _layers_table(task: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    first = runs[0]
    return Table(
        id=f"layers-{task}",
        title=f"{task}: subsets of layers",
        columns=["layers", "how", "features", "multiply-adds", "R2 on validation rows", "chosen"],
        rows=[
            [
                ", ".join(layer["names"]), layer["kind"], layer["features"], layer["multiply_adds"],
                round(layer["r2"], 4), "yes" if layer["names"] == first["chosen"] else "",
            ]
            for layer in first["layers"]
        ],
        caption="First seed. Chosen: the cheapest within the tolerance of all layers on validation rows.",
    )  # fmt: skip


def _buckets_table(outcomes: Outcomes) -> Table:
    def mean(runs: Sequence[Mapping[str, Any]], k: int) -> float | None:
        values = [run["bucket_aucs"][k] for run in runs if run["bucket_aucs"][k] is not None]
        return round(float(np.mean(values)), 3) if values else None

    return Table(
        id="buckets",
        title="Buckets of uncertainty: area under the ROC curve of each against the rest",
        columns=["task", "lowest", "2", "3", "4", "highest"],
        rows=[[task, *(mean(runs, k) for k in range(5))] for task, runs in outcomes.items()],
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
    return Table(
        id="held-out",
        title="Mean uncertainty of rows that trained the main model and of rows that did not",
        columns=["task", "training rows", "held-out rows", "ratio"],
        rows=[
            [task, float(f"{a:.4g}"), float(f"{b:.4g}"), round(a / b, 3)]
            for task, runs in outcomes.items()
            for a, b in [
                tuple(
                    float(np.mean([run["mean_uncertainty"][kind] for run in runs]))
                    for kind in ("training rows", "held-out rows")
                )
            ]
        ],
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


def plots_of(outcomes: Outcomes, extra: Mapping[str, Any]) -> list[Plot]:
    """R2 against passes, level, retention, and what the ablations say."""
    plots: list[Plot] = []
    for task, runs in outcomes.items():
        plots += [_passes_plot(task, runs), _level_plot(task, runs), _retention_plot(task, runs)]
    ablations = extra.get("ablations", {})
    if ablations.get("label_passes"):
        ratios = {loss: f"{loss} ratio" for loss in ("gamma", "mse_var", "mse_std")}
        plots.append(
            _lines(
                "ablation-ratio",
                "Level learnt from few passes",
                ("passes of the labels (T)", "mean estimate / label"),
                ablations["label_passes"],
                "passes",
                ratios,
                "1 is right. E[s] is below the standard deviation when passes are few.",
            )
        )
    if ablations.get("rows"):
        plots.append(
            _lines(
                "ablation-rows",
                "How many auxiliary rows it takes",
                ("auxiliary rows", "R2"),
                ablations["rows"],
                "rows",
                {"all layers": "r2"},
                "First seed, labels of T = 100 passes.",
            )
        )
    if ablations.get("shift"):
        shift = ablations["shift"]
        plots.append(
            Plot(
                id="ablation-shift",
                title="Away from the data the estimate decays, and the range check says so",
                kind="line",
                x_label="rotation (degrees)",
                y_label="R2, or share",
                series=[
                    Series(name=name, x=[row["degrees"] for row in shift], y=[row[key] for row in shift])
                    for name, key in (("R2", "r2"), ("images reported as far", "far"))
                ],
                caption="First seed.",
            )
        )
    return plots


def _lines(
    id: str,
    title: str,
    labels: tuple[str, str],
    rows: Sequence[Mapping[str, Any]],
    x: str,
    lines: Mapping[str, str],
    caption: str,
) -> Plot:
    return Plot(
        id=id,
        title=title,
        kind="line",
        x_label=labels[0],
        y_label=labels[1],
        series=[
            Series(name=name, x=[float(row[x]) for row in rows], y=[row[key] for row in rows])
            for name, key in lines.items()
        ],
        log_x=True,
        caption=caption,
    )


def _passes_plot(task: str, runs: Sequence[Mapping[str, Any]]) -> Plot:
    passes = [float(t) for t in MC_PASSES]

    def spread(row: str) -> list[float] | None:
        return [float(np.std(_values(runs, row), ddof=1))] * len(passes) if len(runs) > 1 else None

    rows = [row for row in (*_FAMILIES, "moment propagation, calibrated") if row in runs[0]["rows"]]
    prediction = next(row for row in runs[0]["rows"] if row.startswith("prediction only"))
    monte_carlo = [_mean(runs, f"Monte-Carlo dropout, T = {t}") for t in MC_PASSES]
    return Plot(
        id=f"passes-{task}",
        title=f"{task}: one pass against T Monte-Carlo passes",
        kind="line",
        x_label="Monte-Carlo passes per prediction (T)",
        y_label="R2 against independent labels",
        series=[
            Series(name="Monte-Carlo dropout", x=passes, y=[max(value, -1.0) for value in monte_carlo]),
            *(
                Series(name=f"{row}, one pass", x=passes, y=[_mean(runs, row)] * len(passes))
                for row in [*rows, prediction]
            ),
        ],
        log_x=True,
        caption="Means over seeds; R2 below -1 is drawn at -1. A level line crosses the curve at its T-equivalent.",
    )


def _level_plot(task: str, runs: Sequence[Mapping[str, Any]]) -> Plot:
    estimates, labels = runs[0]["deciles"]
    return Plot(
        id=f"level-{task}",
        title=f"{task}: estimated and measured uncertainty",
        kind="line",
        x_label="mean estimate of a tenth of the rows",
        y_label="mean uncertainty",
        series=[
            Series(name="measured by T = 100 passes", x=estimates, y=labels),
            Series(name="estimated", x=estimates, y=estimates),
        ],
        caption="First seed, all layers: tenths of the test rows by rising estimate.",
    )


def _retention_plot(task: str, runs: Sequence[Mapping[str, Any]]) -> Plot:
    def named(name: str) -> str:
        return f"{name} (area {np.mean([run['retention_area'][name] for run in runs]):.4f})"

    return Plot(
        id=f"retention-{task}",
        title=f"{task}: error of what is kept when the most uncertain are rejected",
        kind="line",
        x_label="share of the test rows that is kept",
        y_label="mean error of the main model",
        series=[Series(name=named(name), x=curve[0], y=curve[1]) for name, curve in runs[0]["retention"].items()],
        caption="First seed; areas are means over seeds, smaller is better. Of the "
        f"{runs[0]['overlap_at']} most uncertain rows, activations and 20 Monte-Carlo passes choose "
        f"{np.mean([run['overlap'] for run in runs]):.0%} alike.",
    )
