"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tenfold.arms import (
    Outcomes,
    PairedDifference,
    Quantity,
    claim_of_difference,
    difference,
    mean,
    over_seeds,
    paired_bootstrap,
    spread,
)
from tenfold.results import Claim, Plot, Series, Table, claim

_POINTS = "accuracy points"
_ONE_SEED = "One seed: the interval is over test images, and says nothing about other seeds."


def baseline_of(outcomes: Outcomes) -> str:
    """The arm that the boosted one is measured against: joint training with rescaled gradients where it was run."""
    return "joint-rescaled" if "joint-rescaled" in outcomes else "joint"


def claims_of(outcomes: Outcomes, delivered: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them."""
    claims: list[Claim] = []

    def compare(id: str, statement: str, quantity: Quantity, scores: str, other: str, target: str = "> 0") -> None:
        if other in outcomes:
            found = _difference(outcomes, quantity, scores, other)
            note = _ONE_SEED if _one_seed(outcomes) else ""
            made = claim_of_difference(id, statement, found, baseline=other, target=target, unit=_POINTS, note=note)
            claims.append(made)

    area = "Boosted training has more area under the anytime accuracy-cost curve than {}"
    compare("area-joint", area.format("joint training"), "area", "area", "joint")
    compare(
        "area-joint-rescaled", area.format("joint training with rescaled gradients"), "area", "area", "joint-rescaled"
    )
    baseline = baseline_of(outcomes)
    if baseline in outcomes:
        compare(
            "later-exits",
            "Boosted exits 2 to N-1 are more accurate on average",
            lambda outcome: np.mean(outcome["accuracy"][1:-1] or outcome["accuracy"][1:]),
            "later",
            baseline,
        )
        compare(
            "last-exit",
            "The boosted last exit is not worse than the jointly trained one by more than half a point",
            lambda outcome: outcome["accuracy"][-1],
            "last",
            baseline,
            target=">= -0.5",
        )
        compare(
            "budgeted",
            "Boosted training has the higher mean accuracy over all budgets, thresholds from validation",
            lambda outcome: np.mean(outcome["searched"]["accuracy"]),
            "budgeted",
            baseline,
        )
    compare("reweight", "Reweighting by 0.5 beats plain boosting (r = 1) in area", "area", "area", "boosted-r1")
    compare("rescaling", "Gradient rescaling adds area to boosted training", "area", "area", "boosted-unscaled")
    compare(
        "stop-gradient",
        "Without the stop-gradient the first exit pays",
        lambda outcome: outcome["accuracy"][0],
        "first",
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
            chance=False,
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
        _difference(outcomes, gain, "search_gain", None),
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
    return made.model_copy(update={"note": f"{note} {_ONE_SEED}" if _one_seed(outcomes) else note})


def _one_seed(outcomes: Outcomes) -> bool:
    return len(outcomes["boosted"]) == 1


def _difference(outcomes: Outcomes, quantity: Quantity, scores: str, other: str | None) -> PairedDifference:
    """Paired difference of the boosted arm to another, or to nothing: over seeds; with one seed, over test images.

    Args:
        outcomes: of all arms.
        quantity: a number of an outcome.
        scores: name of what each test image adds to it.
        other: the arm subtracted; nothing is where it is ``None``.
    """
    if not _one_seed(outcomes) or "examples" not in outcomes["boosted"][0]:
        return difference(outcomes, quantity, "boosted", other)
    ours = outcomes["boosted"][0]["examples"][scores]
    return paired_bootstrap(ours, outcomes[other][0]["examples"][scores] if other else [0.0] * len(ours))


def summary_of(outcomes: Outcomes, delivered: Mapping[str, Any]) -> str:
    """What the reader gets, in one sentence of measured numbers."""
    share = delivered["cost"] / delivered["costs"][-1]
    sentence = (
        f"The delivered network answers {delivered['accuracy']:.1f} % of the test images right at {share:.0%} of its "
        f"whole cost; run to the end for every image it answers {delivered['full_accuracy']:.1f} %"
    )
    baseline = baseline_of(outcomes)
    if baseline not in outcomes:
        return f"{sentence}."
    found = _difference(outcomes, "area", "area", baseline)
    ahead = "ahead of" if found.mean > 0 else "behind" if found.mean < 0 else "level with"
    return (
        f"{sentence}, and over all costs boosted training is {abs(found.mean):.2f} points {ahead} {baseline} training "
        f"(95 % interval {found.low:+.2f} to {found.high:+.2f})."
    )


def summarise(outcomes: Outcomes) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, and the areas of the single seeds, for each arm."""
    return {
        arm: {
            "accuracy": mean(runs, "accuracy"),
            "mean_accuracy": float(over_seeds(runs, "accuracy").mean()),
            "area": mean(runs, "area"),
            "area_by_seed": over_seeds(runs, "area").tolist(),
            "budgeted_accuracy_searched": float(over_seeds(runs, lambda run: run["searched"]["accuracy"]).mean()),
            "budgeted_accuracy_geometric": float(over_seeds(runs, lambda run: run["geometric"]["accuracy"]).mean()),
            "calibration_error": mean(runs, "calibration_error"),
            "hard_share": mean(runs, "hard_share"),
            "train_seconds": mean(runs, "train_seconds"),
        }
        for arm, runs in outcomes.items()
    }


def _on_curve(kind: str, number: str) -> Quantity:
    return lambda run: run[kind][number]


def _at_exit(n: int) -> Quantity:
    return lambda run: run["accuracy"][n]


def plots_of(outcomes: Outcomes, delivered: Mapping[str, Any], unit: str) -> list[Plot]:
    """Anytime and budgeted curves, gain per exit, exits of the delivered network, training curves."""
    baseline = baseline_of(outcomes)
    main = [arm for arm in ("joint", "joint-rescaled", "boosted") if arm in outcomes]
    anytime = [
        Series(
            name=arm,
            x=runs[0]["costs"],
            y=mean(runs, "accuracy"),
            error=spread(runs, "accuracy") if arm in main else None,
        )
        for arm, runs in outcomes.items()
    ]
    budgeted = [
        Series(
            name=f"{arm}, {kind}",
            x=mean(runs, _on_curve(kind, "cost")),
            y=mean(runs, _on_curve(kind, "accuracy")),
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
        gains = [difference(outcomes, _at_exit(n), "boosted", baseline) for n in range(len(exits))]
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
        [arm, *np.round([*mean(runs, "accuracy"), mean(runs, "area")], 2).tolist()] for arm, runs in outcomes.items()
    ]
    hard = [[arm, *np.round(100 * np.array(mean(runs, "hard_share")), 1).tolist()] for arm, runs in outcomes.items()]
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
