"""What the rows say: claims and metrics of the results page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tenfold.arms import (
    Outcomes,
    PairedDifference,
    Runs,
    claim_of_difference,
    mean,
    over_seeds,
    paired_difference,
)
from tenfold.results import Claim, claim
from tenfold.systems.activation_uncertainty.experiment.baselines import MC_PASSES

_R2 = "points of R2"


def values(runs: Runs, row: str, number: str = "r2") -> list[float]:
    """A number of a row, seed by seed."""
    return over_seeds(runs, lambda run: run["rows"][row][number]).tolist()


def mean_of(runs: Runs, row: str, number: str = "r2") -> float:
    """Its mean over seeds."""
    return mean(runs, lambda run: run["rows"][row][number])


def common_rows(runs: Runs) -> list[str]:
    """Rows that there are for every seed."""
    return [row for row in runs[0]["rows"] if all(row in run["rows"] for run in runs)]


def summary_of(outcomes: Outcomes) -> str:
    """What the reader gets, in one sentence of measured numbers of the first task."""
    task, runs = next(iter(outcomes.items()))
    row = "chosen layers"
    passes, at_least = _equivalent(runs, row).mean, any(run["rows"][row]["at_least"] for run in runs)
    costs = runs[0]["costs"]
    return (
        f"On {task}, one pass with an estimator on {_layers(len(runs[0]['chosen']))} tells the dropout uncertainty as "
        f"well as {'at least ' if at_least else ''}{passes:.0f} passes with dropout (R2 "
        f"{mean_of(runs, row):.2f} of at most {(1 + mean(runs, 'ceiling')) / 2:.2f}), at "
        f"{(costs['main'] + costs['chosen_estimator']) / costs['main']:.2f} times the cost of a plain prediction."
    )


def _layers(count: int) -> str:
    return "one hidden layer" if count == 1 else f"{count} hidden layers"


def claims_of(outcomes: Outcomes, extra: Mapping[str, Any]) -> list[Claim]:
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


def _claims_of_task(task: str, runs: Runs) -> list[Claim]:
    best = max(common_rows(runs), key=lambda row: mean_of(runs, row) if not row.startswith("Monte") else -np.inf)

    def compare(id: str, statement: str, ours: str, other: str, target: str, note: str = "") -> Claim:
        found = paired_difference(values(runs, ours), values(runs, other))
        if len(runs) == 1:  # no spread over seeds: over test rows
            low, high = runs[0]["intervals"][f"{ours} - {other}"]
            found = PairedDifference(found.mean, low, high, 1)
        return claim_of_difference(
            f"{id}-{task}", f"{task}: {statement}", found, baseline=other, target=target, unit=_R2, note=note
        )

    claims = [
        _claim_of_equivalence(task, runs, "all layers", "equivalent"),
        _claim_of_equivalence(task, runs, "chosen layers", "equivalent-chosen"),
        compare("subset", "a chosen subset of layers is within 0.01 of all", "chosen layers", "all layers", ">= -0.01"),
        compare(
            "strength",
            "how strongly units fire tells more than whether they do",
            "all layers",
            "all layers, on/off",
            "> 0",
        ),
    ]
    prediction = next(row for row in runs[0]["rows"] if row.startswith("prediction only"))
    one_number = ""
    if abs(mean_of(runs, "all layers", "spearman") - mean_of(runs, prediction, "spearman")) < 0.005:
        one_number = (
            "Both order the inputs alike (the same rank correlation with the labels): the spread of this main model is "
            "a function of its prediction alone, and there is nothing more to tell."
        )
    claims.append(
        compare(
            "prediction", "activations tell more than the prediction", "all layers", prediction, "> 0", note=one_number
        )
    )
    if "logits" in runs[0]["rows"]:
        claims.append(
            compare(
                "logits",
                "the chosen activations tell at least as much as the logits",
                "chosen layers",
                "logits",
                ">= 0",
                note=f"Best of all learned and analytic rows: {best} ({mean_of(runs, best):.3f}).",
            )
        )
    moments = "moment propagation, calibrated"
    if moments in runs[0]["rows"]:
        claims.append(
            compare(
                "moments",
                "the chosen activations tell at least as much as calibrated moment propagation",
                "chosen layers",
                moments,
                ">= 0",
                note=one_number,
            )
        )
    return claims


def _equivalent(runs: Runs, row: str) -> PairedDifference:
    """T-equivalent and its interval; T counts by its ratio."""
    equivalents = values(runs, row, "equivalent_passes")
    if len(runs) == 1:
        low, high = runs[0]["intervals"][row]
        return PairedDifference(equivalents[0], low, high, 1)
    logs = paired_difference(np.log(equivalents), np.zeros(len(equivalents)))
    mean, low, high = np.exp([logs.mean, *logs.interval]).tolist()
    return PairedDifference(mean, low, high, logs.pairs)


def _claim_of_equivalence(task: str, runs: Runs, row: str, id: str) -> Claim:
    found = _equivalent(runs, row)
    bounded = any(run["rows"][row]["at_least"] for run in runs)
    return claim(
        f"{id}-{task}",
        f"{task}: one pass with {row} is worth 20 Monte-Carlo passes or more",
        value=round(found.mean, 6),
        target=">= 20",
        unit="passes",
        baseline="Monte-Carlo dropout",
        interval=found.interval,
        note=f"At least: {MC_PASSES[-1]} is the most that was measured." if bounded else "",
    )


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
            interval=tuple(joint["interval"]),
            note=f"One seed; the interval is over test rows. R2 {joint['joint, short fit']['r2']:.3f} against "
            f"{joint['post hoc, same rows and loss']['r2']:.3f}; before the short fit {joint['joint']['r2']:.3f}. Post "
            f"hoc with labels of many passes and the loss for them, mse_std: {joint['post hoc, same rows']['r2']:.3f}.",
        ),
    ]


def _claims_of_ensemble(ensemble: Mapping[str, Any]) -> list[Claim]:
    both = ensemble["initialisation and order"]
    where = f"{ensemble['task']}, {ensemble['members']} members"
    return [
        claim(
            "ensemble",
            f"Activations of one member estimate the spread of an ensemble ({where})",
            value=both["r2"],
            target="> 0",
            unit="R2",
            baseline="the mean spread for every input",
            interval=tuple(both["r2_interval"]),
            note="Paper B reports 0.56 on MovieLens and 0.81 on Criteo, with other models, members and splits.",
        ),
        claim(
            "ensemble-sources",
            f"More sources of randomness spread an ensemble further ({where})",
            value=ensemble["more_spread"][0],
            target="> 0",
            unit="% more mean spread",
            baseline="members that differ in initialisation alone",
            interval=tuple(ensemble["more_spread"][1:]),
        ),
        claim(
            "ensemble-mean",
            f"The mean of the ensemble predicts better than its member ({where})",
            value=both["less_error"][0],
            target="> 0",
            unit="% less error",
            baseline="the served member",
            interval=tuple(both["less_error"][1:]),
        ),
    ]


def metrics_of(outcomes: Outcomes, extra: Mapping[str, Any]) -> dict[str, dict[str, float | list[float | None] | None]]:
    """For each task and row, means over seeds."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for task, runs in outcomes.items():
        for row in common_rows(runs):
            numbers = ("r2", "spearman", "auc_top", "auc_bottom", "ratio", "equivalent_passes")
            found[f"{task}: {row}"] = {
                **{number: mean_of(runs, row, number) for number in numbers},
                "r2_by_seed": [*values(runs, row)],
            }
        found[f"{task}: labels"] = {
            "noise_ceiling": mean(runs, "ceiling"),
            "main_error": mean(runs, "error"),
        }
    for name, numbers in extra.get("joint", {}).items():
        if isinstance(numbers, Mapping):
            found[name] = dict(numbers)
    for name, numbers in extra.get("ensemble", {}).items():
        if isinstance(numbers, Mapping):
            found[f"ensemble by {name}"] = {key: value for key, value in numbers.items() if isinstance(value, float)}
    return found
