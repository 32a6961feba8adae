"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.statistics import PairedDifference, claim_of_difference, paired_difference

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each arm, the numbers of ``train_arm`` of every seed."""

_POINTS = "accuracy points"


def baseline_of(outcomes: Outcomes) -> str:
    """The arm that the boosted one is measured against: joint training with rescaled gradients where it was run."""
    return "joint-rescaled" if "joint-rescaled" in outcomes else "joint"


def claims_of(outcomes: Outcomes, delivered: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them."""
    claims: list[Claim] = []

    def compare(id: str, statement: str, quantity: Any, other: str, target: str = "> 0") -> None:
        if other in outcomes:
            found = difference(outcomes, quantity, "boosted", other)
            claims.append(claim_of_difference(id, statement, found, baseline=other, target=target, unit=_POINTS))

    area = "Boosted training has more area under the anytime accuracy-cost curve than {}"
    compare("area-joint", area.format("joint training"), "area", "joint")
    compare("area-joint-rescaled", area.format("joint training with rescaled gradients"), "area", "joint-rescaled")
    baseline = baseline_of(outcomes)
    if baseline in outcomes:
        compare(
            "later-exits",
            "Boosted exits 2 to N-1 are more accurate on average",
            lambda outcome: np.mean(outcome["accuracy"][1:-1] or outcome["accuracy"][1:]),
            baseline,
        )
        compare(
            "last-exit",
            "The boosted last exit is not worse than the jointly trained one by more than half a point",
            lambda outcome: outcome["accuracy"][-1],
            baseline,
            target=">= -0.5",
        )
        compare(
            "budgeted",
            "Boosted training has the higher mean accuracy over all budgets, thresholds from validation",
            lambda outcome: np.mean(outcome["searched"]["accuracy"]),
            baseline,
        )
    compare("reweight", "Reweighting by 0.5 beats plain boosting (r = 1) in area", "area", "boosted-r1")
    compare("rescaling", "Gradient rescaling adds area to boosted training", "area", "boosted-unscaled")
    compare(
        "stop-gradient",
        "Without the stop-gradient the first exit pays",
        lambda outcome: outcome["accuracy"][0],
        "boosted-through",
    )
    claims.append(_claim_of_search(outcomes))
    claims.append(
        claim(
            "served-exits",
            "Serving that stops gives every image the exit of the simulation",
            value=delivered["different_exits"],
            target="== 0",
            unit="images with another exit",
            baseline="simulated thresholds",
            note=f"Largest difference of a logit: {delivered['largest_difference']:.1e}.",
        )
    )
    return claims


def _claim_of_search(outcomes: Outcomes) -> Claim:
    """Searched against geometric thresholds at the cost that each really has on the test split.

    Not at equal budgets: where a dearer policy is no better on validation, the search keeps the cheaper one and leaves
    the rest of the budget unspent.
    """

    def gain(outcome: Mapping[str, Any]) -> float:
        searched, family = outcome["searched"], outcome["geometric"]
        return float(np.mean(searched["accuracy"] - np.interp(searched["cost"], family["cost"], family["accuracy"])))

    def mean_ahead(outcome: Mapping[str, Any], name: str) -> float:
        return float(np.mean(outcome["searched"][name]) - np.mean(outcome["geometric"][name]))

    runs = outcomes["boosted"]
    saved = 1 - np.mean([np.mean(run["searched"]["cost"]) / np.mean(run["geometric"]["cost"]) for run in runs])
    made = claim_of_difference(
        "searched-thresholds",
        "Searched thresholds are at least as accurate on test as the geometric family at the same cost",
        difference(outcomes, gain, "boosted", None),
        baseline="geometric thresholds",
        target=">= 0",
        unit=_POINTS,
    )
    chosen_on = np.mean([mean_ahead(run, "validation_accuracy") for run in runs])
    measured_on = np.mean([mean_ahead(run, "accuracy") for run in runs])
    note = (
        f"At equal budgets the search is {chosen_on:+.2f} points from the family on the validation images that choose "
        f"thresholds and {measured_on:+.2f} on test images, for {saved:.0%} less cost: part of what it finds among "
        "few images is chance."
    )
    return made.model_copy(update={"note": note})


def difference(outcomes: Outcomes, quantity: Any, ours: str, other: str | None) -> PairedDifference:
    """Paired difference of a number between two arms, seed by seed.

    Args:
        outcomes: see ``Outcomes``.
        quantity: name of the number, or a function of an outcome.
        ours: an arm.
        other: the arm subtracted; nothing is where it is ``None``.
    """
    value = quantity if callable(quantity) else lambda outcome: outcome[quantity]
    mine = [value(outcome) for outcome in outcomes[ours]]
    return paired_difference(mine, [value(outcome) for outcome in outcomes[other]] if other else [0.0] * len(mine))


def summarise(outcomes: Outcomes) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, and the areas of the single seeds, for each arm."""
    return {
        arm: {
            "accuracy": _mean(runs, "accuracy"),
            "mean_accuracy": float(np.mean([run["accuracy"] for run in runs])),
            "area": float(np.mean([run["area"] for run in runs])),
            "area_by_seed": [run["area"] for run in runs],
            "budgeted_accuracy_searched": float(np.mean([run["searched"]["accuracy"] for run in runs])),
            "budgeted_accuracy_geometric": float(np.mean([run["geometric"]["accuracy"] for run in runs])),
            "calibration_error": _mean(runs, "calibration_error"),
            "hard_share": _mean(runs, "hard_share"),
            "train_seconds": float(np.mean([run["train_seconds"] for run in runs])),
        }
        for arm, runs in outcomes.items()
    }


def _means(runs: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.mean([run[name] for run in runs], axis=0)


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    return _means(runs, name).tolist()


def _spread(runs: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
    return np.std([run[name] for run in runs], axis=0, ddof=1).tolist() if len(runs) > 1 else None


def plots_of(outcomes: Outcomes, delivered: Mapping[str, Any], unit: str) -> list[Plot]:
    """Anytime and budgeted curves, gain per exit, exits of the delivered network, training curves."""
    baseline = baseline_of(outcomes)
    main = [arm for arm in ("joint", "joint-rescaled", "boosted") if arm in outcomes]
    anytime = [
        Series(
            name=arm,
            x=runs[0]["costs"],
            y=_mean(runs, "accuracy"),
            error=_spread(runs, "accuracy") if arm in main else None,
        )
        for arm, runs in outcomes.items()
    ]
    budgeted = [
        Series(
            name=f"{arm}, {kind}",
            x=np.mean([run[kind]["cost"] for run in runs], axis=0).tolist(),
            y=np.mean([run[kind]["accuracy"] for run in runs], axis=0).tolist(),
        )
        for arm, runs in outcomes.items()
        for kind in ("searched", "geometric")
        if arm == "boosted" or (arm == baseline and kind == "searched")
    ]
    exits = [f"exit {n + 1}" for n in range(len(delivered["costs"]))]
    plots = [
        Plot(
            id="anytime",
            title="Anytime: accuracy against cost",
            kind="line",
            x_label=f"cost of an image ({unit})",
            y_label="test accuracy (%)",
            series=anytime,
            caption="One point per exit, mean over seeds; bars are one standard deviation over seeds.",
        ),
        Plot(
            id="budgeted",
            title="Budgeted: accuracy against mean cost",
            kind="line",
            x_label=f"mean cost of an image ({unit})",
            y_label="test accuracy (%)",
            series=budgeted,
            caption="Thresholds are solved on the validation split for each budget and measured on the test split.",
        ),
        Plot(
            id="exits",
            title="Where images leave the delivered network",
            kind="bar",
            x_label="exit",
            y_label="share of test images (%)",
            series=[Series(name="boosted", x=exits, y=[100 * share for share in delivered["exit_shares"]])],
            caption=f"At a mean cost of {delivered['cost'] / delivered['costs'][-1]:.0%} of the whole network: "
            f"{delivered['accuracy']:.1f} % correct, against {delivered['full_accuracy']:.1f} % at the last exit.",
        ),
    ]
    if baseline in outcomes:
        gains = [
            difference(outcomes, lambda outcome, n=n: outcome["accuracy"][n], "boosted", baseline)
            for n in range(len(exits))
        ]
        plots.append(
            Plot(
                id="gain",
                title=f"Gain of boosted training over {baseline}, exit by exit",
                kind="bar",
                x_label="exit",
                y_label="accuracy points",
                series=[
                    Series(
                        name="boosted",
                        x=exits,
                        y=[gain.mean for gain in gains],
                        error=[gain.high - gain.mean for gain in gains] if gains[0].pairs > 1 else None,
                    )
                ],
                caption="Paired over seeds; bars are 95 % intervals.",
            )
        )
    histories = {arm: runs[0]["history"] for arm, runs in outcomes.items() if arm in main}
    for quantity, title in (
        ("train/loss", "Training loss, all exits"),
        ("validation/area", "Area on validation"),
    ):
        plots.append(
            Plot(
                id=quantity.replace("/", "-"),
                title=title,
                kind="line",
                x_label="epoch",
                y_label="loss" if quantity == "train/loss" else "area (share correct)",
                series=[
                    Series(name=arm, x=[row["epoch"] for row in rows], y=[row[quantity] for row in rows])
                    for arm, rows in histories.items()
                ],
                caption="First seed. Losses of different arms are not the same quantity."
                if quantity == "train/loss"
                else "First seed. The best epoch is chosen by this, in every arm.",
            )
        )
    return plots


def tables_of(outcomes: Outcomes, delivered: Mapping[str, Any]) -> list[Table]:
    """Accuracy per exit and arm, hard training images per exit, the delivered network's thresholds."""
    exits = range(len(delivered["costs"]))
    names = [f"exit {n + 1}" for n in exits]
    accuracy = [
        [arm, *np.round([*_means(runs, "accuracy"), np.mean([run["area"] for run in runs])], 2).tolist()]
        for arm, runs in outcomes.items()
    ]
    hard = [[arm, *np.round(100 * _means(runs, "hard_share"), 1).tolist()] for arm, runs in outcomes.items()]
    policy = delivered["policy"]
    thresholds = [
        [
            names[n],
            delivered["costs"][n],
            _threshold(policy["thresholds"][n], last=n == len(names) - 1),
            round(100 * delivered["exit_shares"][n], 2),
        ]
        for n in exits
    ]
    return [
        Table(
            id="accuracy",
            title="Test accuracy by exit (%)",
            columns=["arm", *names, "area"],
            rows=accuracy,
            caption="Means over seeds. Area: mean accuracy of the anytime curve over the range of costs.",
        ),
        Table(
            id="hard",
            title="Training images that an exit still has to learn (%)",
            columns=["arm", *names],
            rows=hard,
            caption="The ensemble before the exit is wrong, or gives the right class less than 0.9. With r = 1 too few "
            "are left for the deep exits.",
        ),
        Table(
            id="thresholds",
            title="The delivered network",
            columns=["exit", "cost", "leaves from confidence", "test images (%)"],
            rows=thresholds,
        ),
    ]


def _threshold(value: float, last: bool) -> str | float:
    if last:
        return "everyone"
    return "nobody" if value > 1 else round(value, 4)
