"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.arms import PairedDifference, claim_of_difference, paired_difference
from tenfold.results import Claim, Plot, Series, Table

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""By arm, what training gave with every seed."""

GATE = 0.6
PAPER_WITHOUT_LIDAR, PAPER_WITHOUT_CAMERAS = 61.0, 93.0
_POINTS = "points of AP at 2 m"


def _value(run: Mapping[str, Any], case: str, number: str = "ap_2m") -> float:
    value = run["cases"][case][number]
    return float("nan") if value is None else float(value)


def _over(outcomes: Outcomes, quantity: Callable[[Callable[[str, str], Any]], Any]) -> PairedDifference:
    """A quantity of (arm, case), its interval over seeds, or with one seed over test frames drawn with replacement."""
    seeds = len(next(iter(outcomes.values())))

    def with_seed(number: int) -> float:
        return float(quantity(lambda arm, case: _value(outcomes[arm][number], case)))

    values = np.array([with_seed(number) for number in range(seeds)])
    if seeds > 1:
        return paired_difference(values, np.zeros(seeds))
    drawn: NDArray = np.asarray(
        quantity(lambda arm, case: np.array(outcomes[arm][0]["bootstrap"][case])), dtype=np.float64
    )
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (float("nan"), float("nan"))
    return PairedDifference(float(values[0]), float(low), float(high), len(drawn))


def _gain(case: str, ap: Callable[[str, str], Any]) -> Any:
    return 100 * (ap("masked", case) - ap("plain", case))


def claims_of(outcomes: Outcomes) -> list[Claim]:
    """The paper's claims: with all sensors no worse than plain training, without one far better."""
    cases = list(outcomes["masked"][0]["cases"])
    whole = cases[0]
    found = _over(outcomes, lambda ap: 100 * ap("masked", whole))
    claims = [
        claim_of_difference(
            "gate", "With all sensors the masked detector finds most objects", found, baseline="none",
            target=f"> {100 * GATE:g}", unit=_POINTS,
        )
    ]  # fmt: skip
    if "plain" in outcomes:
        found = _over(outcomes, lambda ap: 100 * (ap("masked", whole) - ap("plain", whole)))
        claims.append(
            claim_of_difference(
                "all-sensors", "With all sensors masked training is at most 2 points worse than plain training", found,
                baseline="plain", target="> -2", unit=_POINTS,
            )
        )  # fmt: skip
        for case in cases[1:]:
            hidden = case.startswith(("no LiDAR", "no cameras"))
            found = _over(outcomes, partial(_gain, case))
            claims.append(
                claim_of_difference(
                    _id(case), f"Masked training is {'far ' if hidden else ''}better {_words(case)}", found,
                    baseline="plain", target="> 5" if hidden else "> 0", unit=_POINTS,
                )
            )  # fmt: skip
    for start, share, words in (
        ("no LiDAR", PAPER_WITHOUT_LIDAR, "without LiDAR"),
        ("no cameras", PAPER_WITHOUT_CAMERAS, "without cameras"),
    ):
        own = [case for case in cases if case.startswith(start)]
        if own:
            claims.append(_share_claim(outcomes, whole, f"{start}, drop", share, words))
    return claims


def _share_claim(outcomes: Outcomes, whole: str, case: str, share: float, words: str) -> Claim:
    """Share of NDS that is kept; its interval needs seeds, since errors of true positives are not drawn anew."""
    kept = np.array(
        [100 * _value(run, case, "nds") / max(_value(run, whole, "nds"), 1e-9) for run in outcomes["masked"]]
    )
    return claim_of_difference(
        f"kept-{_id(case)}",
        f"{words[0].upper()}{words[1:]} the masked detector keeps {share:g} % of its NDS, as in the paper's figures",
        paired_difference(kept, np.zeros_like(kept)),
        baseline="all sensors",
        target=f">= {share:g}",
        unit="% of NDS",
        note="" if len(kept) > 1 else "One seed: there is no interval.",
    )


def _words(case: str) -> str:
    """A case in words: ``without LiDAR (drop)``."""
    lacking, _, policy = case.partition(", ")
    return f"{lacking.replace('no ', 'without ', 1)} ({policy})"


def _id(case: str) -> str:
    return case.lower().replace(", ", "-").replace(" ", "-").replace("_", "-")


def summary_of(outcomes: Outcomes) -> str:
    """What the page opens with: one sentence of measured numbers."""
    ours = outcomes["masked"]
    cases = list(ours[0]["cases"])
    seeds = len(ours)

    def mean(arm: str, case: str) -> str:
        return f"{np.mean([_value(run, case) for run in outcomes[arm]]):.3f}"

    parts = [f"AP at 2 m is {mean('masked', cases[0])} with all sensors"]
    for name, words in (("no cameras, drop", "without cameras"), ("no LiDAR, drop", "without LiDAR")):
        if name in cases:
            parts.append(f"{mean('masked', name)} {words}")
    text = ", ".join(parts) + " after masked-modal training"
    if "plain" in outcomes:
        text += (
            " (plain: "
            + ", ".join(
                mean("plain", name) for name in (cases[0], "no cameras, drop", "no LiDAR, drop") if name in cases
            )
            + ")"
        )
    return f"{text}, mean over {seeds} seed{'s' if seeds > 1 else ''}."


def summarise(outcomes: Outcomes) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Metrics of every arm: means over seeds."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for arm, runs in outcomes.items():
        found[arm] = {}
        for case in runs[0]["cases"]:
            for number in ("ap_2m", "mean_ap", "nds"):
                found[arm][f"{number}, {case}"] = float(np.mean([_value(run, case, number) for run in runs]))
        found[arm]["params"] = runs[0]["params"]
        found[arm]["train_seconds"] = float(np.mean([run["train_seconds"] for run in runs]))
    return found


def plots_of(outcomes: Outcomes) -> list[Plot]:
    """Robustness bars, precision over recall, AP over distance, learning curves."""
    cases = list(outcomes["masked"][0]["cases"])
    bars = []
    for arm, runs in outcomes.items():
        values = np.array([[_value(run, case) for case in cases] for run in runs])
        error = values.std(0, ddof=1).tolist() if len(runs) > 1 else None
        bars.append(Series(name=arm, x=cases, y=values.mean(0).tolist(), error=error))
    first = outcomes["masked"][0]
    recalls = [n / 100 for n in range(101)]
    plots = [
        Plot(
            id="robustness", title="With and without sensors", kind="bar", x_label="missing sensors, and policy",
            y_label="mean AP at 2 m", series=bars,
            caption="zero: the missing sensor's branch is fed with zeros; drop: its tokens are left out. Bars: one "
            "standard deviation over seeds.",
        ),
        Plot(
            id="precision-recall", title="Precision over recall at 2 m, all sensors", kind="line", x_label="recall",
            y_label="precision", series=[Series(name=n, x=recalls, y=row) for n, row in first["curves"].items()],
            caption="Arm masked, first seed.",
        ),
    ]  # fmt: skip
    if first["distances"]:
        ranges = list(first["distances"])
        series = [
            Series(name=arm, x=ranges, y=[runs[0]["distances"].get(r, {}).get("mean") for r in ranges])
            for arm, runs in outcomes.items()
        ]
        plots.append(
            Plot(id="distance", title="AP at 2 m by distance, all sensors", kind="line", x_label="distance, m",
                 y_label="mean AP at 2 m", series=series, caption="First seed.")
        )  # fmt: skip
    plots.append(
        Plot(
            id="learning", title="Training loss", kind="line", x_label="epoch", y_label="loss",
            series=[
                Series(name=arm, x=[row["epoch"] for row in runs[0]["history"]],
                       y=[row["train/loss"] for row in runs[0]["history"]])
                for arm, runs in outcomes.items()
            ],
            caption="First seed. Masked training sees harder samples, so its loss is higher.",
        )
    )  # fmt: skip
    return plots


def tables_of(outcomes: Outcomes) -> list[Table]:
    """Every case's scores by arm, and AP by class and by distance."""
    cases = list(outcomes["masked"][0]["cases"])
    rows: list[list[str | float | int | None]] = []
    errors = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
    for case in cases:
        for arm, runs in outcomes.items():
            ap = [_value(run, case) for run in runs]
            row: list[str | float | int | None] = [case, arm, float(np.mean(ap))]
            row.append(float(np.std(ap, ddof=1)) if len(ap) > 1 else None)
            for number in ("mean_ap", "nds", *errors):
                values = [_value(run, case, number) for run in runs]
                row.append(float(np.mean(values)) if np.isfinite(values).all() else None)
            rows.append(row)
    classes = [
        name.removeprefix("ap_2m ") for name in outcomes["masked"][0]["cases"][cases[0]] if name.startswith("ap_2m ")
    ]
    by_class: list[list[str | float | int | None]] = [
        [case, arm, *(float(np.mean([_value(run, case, f"ap_2m {name}") for run in runs])) for name in classes)]
        for case in cases
        for arm, runs in outcomes.items()
    ]
    by_distance: list[list[str | float | int | None]] = [
        [arm, between, *(runs[0]["distances"][between].get(name) for name in (*classes, "mean"))]
        for arm, runs in outcomes.items()
        for between in runs[0]["distances"]
    ]
    return [
        Table(
            id="cases", title="Scores with and without sensors",
            columns=["sensors", "arm", "AP at 2 m", "sd over seeds", "mAP", "NDS", "ATE, m", "ASE", "AOE, rad",
                     "AVE, m/s", "AAE"],
            rows=rows, caption="Means over seeds. mAP is over nuScenes' four thresholds; errors are those of nuScenes.",
        ),
        Table(id="classes", title="AP at 2 m by class", columns=["sensors", "arm", *classes], rows=by_class),
        Table(
            id="distances", title="AP at 2 m by distance, all sensors", columns=["arm", "metres", *classes, "mean"],
            rows=by_distance, caption="First seed. A class without objects at a distance has no number there.",
        ),
    ]  # fmt: skip
