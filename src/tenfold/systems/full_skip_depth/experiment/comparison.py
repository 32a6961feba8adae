"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.arms import PairedDifference, claim_of_difference, paired_bootstrap, paired_difference
from tenfold.results import Claim, Plot, Series, Table

Outcomes = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By data set and arm, what training gave with every seed."""

Beside = Mapping[str, Mapping[str, Any]]
"""By data set, ``constant`` (abs rel of a constant depth) and ``images_per_second`` of every arm."""

_SHOWN = ("abs_rel", "rmse", "silog", "delta1", "edge_abs_rel", "boundary_f", "median_abs_rel")
_PERCENT = "% of the baseline's"
_POINTS = "points of the F-score"


def claims_of(outcomes: Outcomes, dense: Mapping[str, bool]) -> list[Claim]:
    """The paper's claim, FSCN better than same-resolution skips with one encoder, and what stands beside it.

    Args:
        outcomes: see ``Outcomes``.
        dense: by data set, whether its depth is dense, as edges need.
    """
    claims: list[Claim] = []
    for name, arms in outcomes.items():
        kinds = [
            ("abs_rel", "a lower abs rel", "< 0"),
            ("rmse", "a lower RMSE", "< 0"),
            ("edge_abs_rel", "a lower abs rel beside depth edges", "< 0"),
            ("boundary_f", "a higher boundary F-score", "> 0"),
        ]
        for metric, words, target in kinds[: 4 if dense[name] else 2]:
            _compare(claims, arms, name, metric, f"FSCN has {words} than same-resolution skips", "fscn", "unet", target)
        _compare(
            claims,
            arms,
            name,
            "abs_rel",
            "FSCN with no more parameters than the U-Net has a lower abs rel",
            "fscn-equal",
            "unet",
        )
        _compare(
            claims, arms, name, "abs_rel", "Adaptive fusion lowers abs rel at equal wiring", "fscn", "shallow-concat"
        )
        _compare(claims, arms, name, "abs_rel", "Shallower sources alone beat all sources", "fscn", "full-acm")
        _compare(claims, arms, name, "abs_rel", "FSCN has a lower abs rel than BTS' decoder", "fscn", "bts")
        _compare(claims, arms, name, "abs_rel", "FSCN has a lower abs rel than AdaBins' decoder", "fscn", "adabins")
        _compare(
            claims, arms, name, "abs_rel", "FSCN's abs rel is 5 % below a DPT-style decoder's", "fscn", "dpt", "<= -5"
        )
    return claims


def _compare(
    claims: list[Claim],
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    name: str,
    metric: str,
    statement: str,
    ours: str,
    other: str,
    target: str = "< 0",
) -> None:
    if ours not in arms or other not in arms:
        return
    found = relative_difference(arms, metric, ours, other)
    claims.append(
        claim_of_difference(
            f"{name}-{metric.replace('_', '-')}-{ours}-{other}",
            f"{statement} ({name})",
            found,
            baseline=other,
            target=target,
            unit=_POINTS if metric == "boundary_f" else _PERCENT,
            note=_note_over_images(arms, ours, other, alike=name == "drive") if metric == "abs_rel" else "",
        )
    )


def relative_difference(
    arms: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, ours: str, other: str
) -> PairedDifference:
    """Difference of a metric in per cent of the baseline's: paired over seeds, or with one seed over test images.

    The boundary F-score may be 0: its difference is in points (hundredths).
    """
    a, b = (np.array([run["metrics"][metric] for run in arms[arm]], dtype=np.float64) for arm in (ours, other))
    if len(a) > 1:
        return paired_difference(100 * (a - b if metric == "boundary_f" else a / b - 1), np.zeros_like(a))
    mine, theirs = (
        np.mean(np.array([run["rows"][metric] for run in arms[arm]], dtype=np.float64), axis=0) for arm in (ours, other)
    )
    known = np.isfinite(mine) & np.isfinite(theirs)
    found = paired_bootstrap(mine[known], theirs[known])
    return found.times(100 if metric == "boundary_f" else 100 / max(float(theirs[known].mean()), 1e-12))


def _note_over_images(
    arms: Mapping[str, Sequence[Mapping[str, Any]]], ours: str, other: str, *, alike: bool = False
) -> str:
    """Wilcoxon's signed-rank test over test images of the mean over seeds; none of frames that follow one another."""
    from scipy import stats

    a, b = (np.mean([run["rows"]["abs_rel"] for run in arms[arm]], axis=0) for arm in (ours, other))
    if len(a) < 6 or np.allclose(a, b):
        return ""
    seeds = " (means over seeds)" if len(arms[ours]) > 1 else ""
    text = f"Over {len(a)} test images{seeds}, for these trained networks: better on {float(np.mean(a < b)):.0%}"
    if alike:
        return f"{text}; the images follow one another, so that no test takes them for independent."
    return f"{text}, Wilcoxon p = {float(stats.wilcoxon(a, b).pvalue):.2g}."


def summary_of(outcomes: Outcomes, beside: Beside) -> str:
    """What the page opens with: one sentence of measured numbers."""
    parts = []
    for name, arms in outcomes.items():
        ours = _mean([run["metrics"]["abs_rel"] for run in arms["fscn"]])
        others = {
            arm: _mean([run["metrics"]["abs_rel"] for run in runs]) for arm, runs in arms.items() if arm != "fscn"
        }
        shown = [f"{value:.4f} by {arm}" for arm, value in others.items() if arm in ("unet", "dpt") and value]
        shown.append(f"{beside[name]['constant']:.4f} by a constant depth")
        parts.append(f"abs rel {ours:.4f} by FSCN on the test frames of {name} ({', '.join(shown)})")
    seeds = len(next(iter(next(iter(outcomes.values())).values())))
    return f"{'; '.join(parts)}, mean over {seeds} seed{'s' if seeds > 1 else ''}."


def summarise(outcomes: Outcomes, beside: Beside) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Metrics of every arm and data set: means over seeds."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for name, arms in outcomes.items():
        for arm, runs in arms.items():
            label = arm if len(outcomes) == 1 else f"{name}: {arm}"
            found[label] = {
                metric: _mean([run["metrics"].get(metric) for run in runs]) for metric in runs[0]["metrics"]
            }
            found[label] |= {
                "params": runs[0]["params"],
                "images_per_second": beside[name]["images_per_second"][arm],
                "train_seconds": float(np.mean([run["train_seconds"] for run in runs])),
            }
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def cpu_minutes(outcomes: Outcomes) -> float:
    """CPU time of all trainings and their measurement, in minutes."""
    return sum(run["cpu_seconds"] for arms in outcomes.values() for runs in arms.values() for run in runs) / 60


def plots_of(outcomes: Outcomes) -> list[Plot]:
    """Error by arm, error against distance, and learning curves."""
    plots = []
    for name, arms in outcomes.items():
        errors = [[run["metrics"]["abs_rel"] for run in runs] for runs in arms.values()]
        spread = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in errors]
        plots.append(
            Plot(
                id=f"abs-rel-{name}",
                title=f"Abs rel on the test frames of {name}",
                kind="bar",
                x_label="arm",
                y_label="abs rel",
                series=[Series(name="abs rel", x=list(arms), y=[float(np.mean(v)) for v in errors], error=spread)],
                caption="Mean over seeds; bars: standard deviation over seeds. Lower is better.",
            )
        )
        series = []
        for arm in [arm for arm in ("unet", "fscn", "dpt") if arm in arms]:
            bins = list(arms[arm][0]["distances"])
            values = [_mean([run["distances"].get(b, {}).get("abs_rel") for run in arms[arm]]) for b in bins]
            series.append(Series(name=arm, x=bins, y=values))
        plots.append(
            Plot(
                id=f"distance-{name}",
                title=f"Error against distance ({name})",
                kind="line",
                x_label="true distance, m",
                y_label="abs rel",
                series=series,
                caption="Mean over the test images that have pixels at this distance, and over seeds.",
            )
        )
    for name, arms in outcomes.items():
        plots.append(
            Plot(
                id=f"learning-{name}",
                title=f"Abs rel on validation frames ({name})",
                kind="line",
                x_label="epoch",
                y_label="abs rel",
                series=[
                    Series(
                        name=arm,
                        x=[row["epoch"] for row in runs[0]["history"]],
                        y=[row["validation/abs_rel"] for row in runs[0]["history"]],
                    )
                    for arm, runs in arms.items()
                ],
                caption="First seed.",
            )
        )
    return plots


def tables_of(outcomes: Outcomes, beside: Beside) -> list[Table]:
    """The arms' metrics, and errors by distance."""
    tables = []
    for name, arms in outcomes.items():
        some = next(iter(arms.values()))[0]["metrics"]
        shown = [metric for metric in _SHOWN if metric in some]
        rows: list[list[str | float | int | None]] = []
        for arm, runs in arms.items():
            values: list[str | float | int | None] = [arm, runs[0]["params"]]
            values += [_mean([run["metrics"].get(metric) for run in runs]) for metric in shown]
            values.append(float(np.std([run["metrics"]["abs_rel"] for run in runs], ddof=1)) if len(runs) > 1 else None)
            values.append(beside[name]["images_per_second"][arm])
            values.append(float(np.mean([run["cpu_seconds"] for run in runs])))
            rows.append(values)
        constant = [beside[name]["constant"] if metric == "abs_rel" else None for metric in shown]
        rows.append(["a constant depth", 0, *constant, None, None, None])
        first = next(iter(arms.values()))[0]
        tables.append(
            Table(
                id=f"metrics-{name}",
                title=f"Test frames of {name}",
                columns=[
                    "arm",
                    "parameters",
                    *(m.replace("_", " ") for m in shown),
                    "abs rel, sd",
                    "images/s",
                    "CPU seconds",
                ],
                rows=rows,
                caption=f"{first['images']} images ({first['skipped']} without valid pixels); protocol: "
                f"{first['protocol']}; means over {len(next(iter(arms.values())))} seeds. Median abs rel: each "
                "prediction aligned by its median first. Images/s: one at a time, fastest of several turns. Constant "
                "depth: the training frames' median.",
            )
        )
    return tables
