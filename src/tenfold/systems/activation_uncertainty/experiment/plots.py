"""Plots of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

from tenfold.arms import Outcomes, Runs, mean
from tenfold.results import Plot, Series
from tenfold.systems.activation_uncertainty.experiment.baselines import MC_PASSES
from tenfold.systems.activation_uncertainty.experiment.comparison import mean_of

_FAMILIES = ("all layers", "chosen layers", "all layers, on/off")


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


def _passes_plot(task: str, runs: Runs) -> Plot:
    passes = [float(t) for t in MC_PASSES]

    rows = [row for row in (*_FAMILIES, "moment propagation, calibrated") if row in runs[0]["rows"]]
    prediction = next(row for row in runs[0]["rows"] if row.startswith("prediction only"))
    monte_carlo = [mean_of(runs, f"Monte-Carlo dropout, T = {t}") for t in MC_PASSES]
    return Plot(
        id=f"passes-{task}",
        title=f"{task}: one pass against T Monte-Carlo passes",
        kind="line",
        x_label="Monte-Carlo passes per prediction (T)",
        y_label="R2 against independent labels",
        series=[
            Series(name="Monte-Carlo dropout", x=passes, y=[max(value, -1.0) for value in monte_carlo]),
            *(
                Series(name=f"{row}, one pass", x=passes, y=[mean_of(runs, row)] * len(passes))
                for row in [*rows, prediction]
            ),
        ],
        log_x=True,
        caption="Means over seeds; R2 below -1 is drawn at -1. A level line crosses the curve at its T-equivalent.",
    )


def _level_plot(task: str, runs: Runs) -> Plot:
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


def _retention_plot(task: str, runs: Runs) -> Plot:
    def named(name: str) -> str:
        return f"{name} (area {mean(runs, lambda run: run['retention_area'][name]):.4f})"

    return Plot(
        id=f"retention-{task}",
        title=f"{task}: error of what is kept when the most uncertain are rejected",
        kind="line",
        x_label="share of the test rows that is kept",
        y_label="mean error of the main model",
        series=[Series(name=named(name), x=curve[0], y=curve[1]) for name, curve in runs[0]["retention"].items()],
        caption="First seed; areas are means over seeds, smaller is better. Of the "
        f"{runs[0]['overlap_at']} most uncertain rows, activations and 20 Monte-Carlo passes choose "
        f"{mean(runs, 'overlap'):.0%} alike.",
    )
