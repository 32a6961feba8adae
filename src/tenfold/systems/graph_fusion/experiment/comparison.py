"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tenfold.arms import Outcomes, bars, claim_of_difference, mean, over_seeds, spread
from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.systems.graph_fusion.fusion.objectives import SIDES
from tenfold.systems.graph_fusion.ranking.summaries import BUCKETS, paired_bootstrap

Reciprocal = Mapping[str, Mapping[Any, Mapping[int, Tensor]]]
"""For each arm and side and seed, ``(test triples,)`` mean reciprocal ranks."""

_POINTS = "MRR points"


def claims_of(
    outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]], reciprocal: Reciprocal, delivered: Mapping[str, Any]
) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them."""
    claims: list[Claim] = []

    def compare(id: str, statement: str, side: str, other: str, note: str = "") -> None:
        if other in outcomes:
            found = paired_bootstrap(reciprocal["vem2l"][side], reciprocal[other][side])
            baseline = f"{side}, {other}"
            claims.append(
                claim_of_difference(id, statement, found.times(100), baseline=baseline, unit=_POINTS, note=note)
            )

    compare("structure-gain", "The fused structure encoder, alone, beats itself unfused", "structure", "alone")
    compare("text-gain", "The fused text encoder, alone, beats itself unfused", "text", "alone")
    claims.append(_ensemble_claim(outcomes, ensembles, reciprocal))
    compare("structure-more", "It also beats itself unfused after as many further epochs", "structure", "alone-more")
    compare(
        "unobserved",
        "Unobserved queries (VEM) add to mutual learning on observed ones for as many steps",
        "structure",
        "m2l-more",
    )
    compare("mutual", "M2L before the EM rounds helps the structure encoder", "structure", "vem")
    compare(
        "densification",
        "Injecting confident triples helps the structure encoder beyond the beliefs on unobserved queries",
        "structure",
        "vem2l-nodens",
        note=_densification_note(outcomes),
    )
    claims.append(
        claim(
            "served-alone",
            "A student that is saved and loaded, without the other encoder, gives the same scores",
            value=delivered["loaded_difference"],
            target="== 0",
            unit="largest difference of a score",
            baseline="the encoder in the fusion",
            chance=False,
        )
    )
    return claims


def _ensemble_claim(outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]], reciprocal: Reciprocal) -> Claim:
    ours = over_seeds(outcomes["vem2l"], _rank("structure", "mrr"))
    theirs = [found["groups"]["both"]["mrr"] for found in ensembles]
    share = float(np.mean(ours) / np.mean(theirs))
    found = paired_bootstrap(reciprocal["vem2l"]["structure"], reciprocal["ensemble"]["structure"])
    average = float(np.mean(theirs))
    interval = (1 + found.low / average, 1 + found.high / average)
    return claim(
        "ensemble-share",
        "One fused structure encoder reaches at least 0.95 of the MRR of the two-encoder ensemble",
        value=share,
        target=">= 0.95",
        unit="share of the ensemble's MRR",
        baseline="ensemble of the two unfused encoders, weight from validation",
        interval=interval,
        note="" if share >= 0.95 else f"The ensemble has MRR {average:.3f}, the one encoder {np.mean(ours):.3f}.",
    )


def _densification_note(outcomes: Outcomes) -> str:
    rounds = [made for outcome in outcomes["vem2l"] for made in outcome["rounds"]]
    shares = [made["true_share"] for made in rounds if made["true_share"] is not None]
    if not shares:
        return "No triple was injected."
    number = np.mean([made["injected"] for made in rounds])
    return f"On average {number:.0f} triples were injected per round, {np.mean(shares):.0%} of them known to be true."


def summary_of(outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]], delivered: Mapping[str, Any]) -> str:
    """What the reader gets, in one sentence of measured numbers."""
    side = delivered["side"]
    ours, alone = (100 * mean(outcomes[arm], _rank(side, "mrr")) for arm in ("vem2l", "alone"))
    both = 100 * mean(ensembles, _group("mrr"))
    share = delivered["params"] / sum(cost["params"] for cost in delivered["costs"].values())
    return (
        f"The {side} encoder, served alone, has a test MRR of {ours:.1f} % after fusion and {alone:.1f} % without; "
        f"both encoders together have {both:.1f} %, at {1 / share:.1f} times its parameters."
    )


def _rank(side: str, number: str, group: str = "both") -> Callable[[Mapping[str, Any]], float]:
    """A number of a side's ranks in a run."""
    return lambda run: run["sides"][side]["groups"][group].get(number, math.nan)


def _percent_of(side: str, number: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda run: 100 * _rank(side, number)(run)


def _group(number: str, group: str = "both") -> Callable[[Mapping[str, Any]], float]:
    """A number of an ensemble's ranks."""
    return lambda run: run["groups"][group].get(number, math.nan)


def summarise(
    outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, and the single seeds' MRR, for each arm and side."""
    numbers = ("mrr", "hits@1", "hits@3", "hits@10", "mrr_optimistic", "mrr_pessimistic")
    metrics: dict[str, dict[str, float | list[float | None] | None]] = {}
    for arm, runs in outcomes.items():
        for side in SIDES:
            row: dict[str, float | list[float | None] | None] = {
                name.replace("@", ""): mean(runs, _rank(side, name)) for name in numbers
            }
            row["mrr_by_seed"] = over_seeds(runs, _rank(side, "mrr")).tolist()
            row["mrr_tail"] = mean(runs, _rank(side, "mrr", "tail"))
            row["mrr_head"] = mean(runs, _rank(side, "mrr", "head"))
            row["mrr_validation"] = float(np.mean([run["sides"][side]["validation_mrr"] for run in runs]))
            full = [run["sides"][side].get("full_truth", {}).get("mrr") for run in runs]
            row["mrr_full_truth"] = None if None in full else float(np.mean(full))
            metrics[f"{arm}, {side}"] = row
    metrics["ensemble"] = {
        **{name.replace("@", ""): mean(ensembles, _group(name)) for name in numbers},
        "mrr_by_seed": [found["groups"]["both"]["mrr"] for found in ensembles],
        "weight_of_structure": float(np.mean([found["weight"] for found in ensembles])),
    }
    return metrics


def plots_of(outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]], hidden: bool) -> list[Plot]:
    """MRR of the arms, groups by degree, precision of injected triples, validation curves."""

    def both_sides(number: str) -> list[Series]:
        series = [bars(f"{side} alone serves", outcomes, _percent_of(side, number)) for side in SIDES]
        both = 100 * mean(ensembles, _group(number))
        return [*series, Series(name="ensemble (both serve)", x=["ensemble"], y=[both])]

    plots = [
        Plot(
            id="mrr",
            title="Filtered MRR on the test split",
            kind="bar",
            x_label="arm",
            y_label="MRR (%)",
            series=both_sides("mrr"),
            caption="Mean over seeds; bars are one standard deviation. One encoder serves, but in the ensemble.",
        ),
        Plot(
            id="hits10",
            title="Hits@10 on the test split",
            kind="bar",
            x_label="arm",
            y_label="Hits@10 (%)",
            series=both_sides("hits@10"),
            caption="As above.",
        ),
        _degree_plot(outcomes),
        _precision_plot(outcomes, hidden),
    ]
    return [plot for plot in (*plots, *_history_plots(outcomes)) if plot.series]


def _degree_plot(outcomes: Outcomes) -> Plot:
    names = [
        name for name in BUCKETS if not np.isnan(mean(outcomes["alone"], _rank("structure", "mrr", f"degree {name}")))
    ]
    series = [
        Series(
            name=f"{side}, {arm}",
            x=names,
            y=[100 * mean(outcomes[arm], _rank(side, "mrr", f"degree {name}")) for name in names],
        )
        for side in SIDES
        for arm in ("alone", "vem2l")
    ]
    return Plot(
        id="degrees",
        title="Where fusion helps: MRR by the number of training edges of the given entity",
        kind="bar",
        x_label="training edges",
        y_label="MRR (%)",
        series=series,
    )


def _precision_plot(outcomes: Outcomes, hidden: bool) -> Plot:
    runs = outcomes["vem2l"]
    last = [run["rounds"][-1]["precision"] for run in runs if run["rounds"]]
    series = []
    if last:
        thresholds = last[0]["threshold"]
        for name, label in (
            ("precision", "judged by all that is known" if hidden else "judged by validation and test facts"),
            *((("precision_known", "judged by validation and test facts only"),) if hidden else ()),
        ):
            values = [[curve[name][k] for curve in last if curve[name][k] is not None] for k in range(len(thresholds))]
            series.append(Series(name=label, x=thresholds, y=[100 * float(np.mean(v)) if v else None for v in values]))
    caption = (
        "All candidates of the last round, over seeds; those above the threshold could be injected. On a thinned graph "
        "the removed triples are known, so that true and false can be told: training never sees them."
        if hidden
        else "Without a known full graph this is a lower bound: most true candidates count as false."
    )
    return Plot(
        id="precision",
        title="How many of the triples that could be injected are true",
        kind="line",
        x_label="confidence threshold",
        y_label="true (%)",
        series=series,
        caption=caption,
    )


def _history_plots(outcomes: Outcomes) -> list[Plot]:
    arms = [arm for arm in ("alone-more", "m2l-more", "vem2l") if arm in outcomes]
    series, agreement = [], []
    for arm in arms:
        rows = outcomes[arm][0]["history"]
        for side in SIDES:
            points = [
                (n, row[f"validation/{side}"]) for n, row in enumerate(rows, start=1) if f"validation/{side}" in row
            ]
            series.append(
                Series(name=f"{side}, {arm}", x=[float(n) for n, _ in points], y=[100 * value for _, value in points])
            )
        for key, name in (("train/agreement", "training queries"), ("validation/agreement", "validation queries")):
            together = [(n, row[key]) for n, row in enumerate(rows, start=1) if "train/agreement" in row]
            if together and arm == "vem2l":
                x, y = [float(n) for n, _ in together], [100 * share for _, share in together]
                agreement.append(Series(name=name, x=x, y=y))
    plots = [
        Plot(
            id="validation",
            title="MRR on validation",
            kind="line",
            x_label="epoch (all stages; an EM round counts its E- and M-step)",
            y_label="MRR (%)",
            series=series,
            caption="First seed. The best epoch of each encoder is kept, over all stages, the warm start included.",
        )
    ]
    if agreement:
        plots.append(
            Plot(
                id="agreement",
                title="How often both encoders have the same first answer while they learn from each other",
                kind="line",
                x_label="epoch",
                y_label="same answer (%)",
                series=agreement,
                caption="First seed, M2L. Rising agreement with falling validation MRR would mean shared mistakes.",
            )
        )
    return plots


def tables_of(outcomes: Outcomes, ensembles: Sequence[Mapping[str, Any]], delivered: Mapping[str, Any]) -> list[Table]:
    """Ranks of all arms, directions and groups, injected triples, the delivered encoder."""
    numbers = ("mrr", "hits@1", "hits@3", "hits@10")
    rows: list[list[str | float | int | None]] = []
    for arm, runs in outcomes.items():
        for side in SIDES:
            full = [run["sides"][side].get("full_truth", {}).get("mrr") for run in runs]
            rows.append(
                [
                    arm,
                    side,
                    *(_percent(mean(runs, _rank(side, number))) for number in numbers),
                    _percent(spread(runs, _rank(side, "mrr"))),
                    *(_percent(mean(runs, _rank(side, "mrr", group))) for group in ("tail", "head")),
                    None if None in full else _percent(np.mean(full)),
                ]
            )
    ensemble = [_percent(mean(ensembles, _group(number))) for number in numbers]
    directions = [_percent(mean(ensembles, _group("mrr", group))) for group in ("tail", "head")]
    rows.append(["ensemble", "both", *ensemble, _percent(spread(ensembles, _group("mrr"))), *directions, None])
    tables = [
        Table(
            id="ranks",
            title="Test split, filtered, both directions (%)",
            columns=[
                "arm",
                "serves",
                "MRR",
                "Hits@1",
                "Hits@3",
                "Hits@10",
                "sd of MRR",
                "MRR tail",
                "MRR head",
                "MRR full truth",
            ],
            rows=rows,
            caption="Means over seeds. Full truth: hidden true triples are filtered, too, which a standard filter "
            "counts as wrong answers.",
        ),
        _groups_table(outcomes),
        _rounds_table(outcomes),
        Table(
            id="delivered",
            title="The students, each without the other",
            columns=["student", "parameters", "one query (ms)", "memory (MiB)", "delivered"],
            rows=[
                [
                    side,
                    int(cost["params"]),
                    round(cost["latency_ms"], 3),
                    round(cost["memory_mb"], 2),
                    "yes" if side == delivered["side"] else "",
                ]
                for side, cost in delivered["costs"].items()
            ],
            caption="Time of one query against all entities, candidate vectors kept.",
        ),
        Table(
            id="examples",
            title="Test queries and the delivered encoder's first answer (ids; known answers left out)",
            columns=["entity", "relation", "first answer", "in the test split", "rank of the asked answer"],
            rows=delivered["examples"],
        ),
    ]
    return [table for table in tables if table.rows]


def _groups_table(outcomes: Outcomes) -> Table:
    names = ["seen", "unseen", *(f"degree {name}" for name in BUCKETS)]
    rows: list[list[str | float | int | None]] = []
    for name in names:
        queries = _rank("structure", "queries", name)(outcomes["alone"][0])
        values = [
            _percent(mean(outcomes[arm], _rank(side, "mrr", name))) for side in SIDES for arm in ("alone", "vem2l")
        ]
        rows.append([name, int(queries), *values])
    return Table(
        id="groups",
        title="MRR by group (%)",
        columns=["group", "queries", "structure alone", "structure vem2l", "text alone", "text vem2l"],
        rows=rows,
        caption="Unseen: an entity of the triple has no training triple. Degree: training edges of the given entity.",
    )


def _rounds_table(outcomes: Outcomes) -> Table:
    rows: list[list[str | float | int | None]] = []
    for arm, runs in outcomes.items():
        for number in range(max(len(run["rounds"]) for run in runs)):
            made = [run["rounds"][number] for run in runs]
            if not any(one["injected"] for one in made):
                continue
            shares = [one["true_share"] for one in made if one["true_share"] is not None]
            rows.append(
                [
                    arm,
                    number + 1,
                    round(float(np.mean([one["residual_queries"] for one in made]))),
                    round(float(np.mean([one["cross_queries"] for one in made]))),
                    round(float(np.mean([one["injected"] for one in made])), 1),
                    _percent(np.mean(shares)) if shares else None,
                ]
            )
    return Table(
        id="rounds",
        title="Injected triples",
        columns=["arm", "round", "residual queries", "cross queries", "injected", "known to be true (%)"],
        rows=rows,
        caption="Means over seeds.",
    )


def _percent(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(100 * float(value), 2)
