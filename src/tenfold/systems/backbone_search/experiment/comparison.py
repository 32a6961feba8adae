"""What the searches and trainings say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.arms import PairedDifference, claim_of_difference, mean, paired_difference
from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan
from tenfold.systems.backbone_search.experiment.settings import Config
from tenfold.systems.backbone_search.experiment.shapes import CLOSE

POINTS = "mAP points"
_NAMES = {
    "mobiledet": "the MobileDet-CPU shape",
    "uniform-width": "the seed made evenly narrower",
    "uniform-expansion": "the seed with evenly smaller expansions",
    "scratch": "itself trained from scratch",
}


def summary_of(outcomes: Mapping[str, Any]) -> str:
    """What the reader gets, in a sentence."""
    finals, seeds = outcomes["finals"], outcomes["seeds"]
    found = finals["found"]
    text = (
        f"The found detector reaches {100 * mean(found, 'test_map'):.1f} mAP on the test images with "
        f"{mean(found, 'multiply_adds') / 1e6:.1f} million multiply-adds"
    )
    others = [f"{100 * mean(runs, 'test_map'):.1f} for {_NAMES[arm]}" for arm, runs in finals.items() if arm in _NAMES]
    text += f", against {', '.join(others)}" if others else ""
    runs = outcomes["searches"]["nsga2"]
    share = np.mean(
        [r["seconds"] / len(r["candidates"]) / s["seconds"] for r, s in zip(runs, seeds.values(), strict=True)]
    )
    return f"{text}; a candidate took {100 * share:.1f} % of the seed's training."


def claims_of(outcomes: Mapping[str, Any], delivered: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims, and what the method promises, as far as the run's arms and controls measure them."""
    finals, searches = outcomes["finals"], outcomes["searches"]
    claims = []
    for arm, name in _NAMES.items():
        if arm in finals:
            target = ">= 2" if arm == "mobiledet" else "> 0"
            claims.append(
                claim_of_difference(
                    f"found-{arm}",
                    f"At equal multiply-adds the found network is more accurate on test images than {name}",
                    points(outcomes, arm),
                    baseline=arm,
                    target=target,
                    unit=POINTS,
                    note="The paper reports 2.0 on data of its own." if arm == "mobiledet" else "",
                )
            )
    claims.append(_equal_cost(finals))
    claims.append(_candidate_cost(outcomes))
    for control, runs in searches.items():
        if control in ("nsga2", "nomap"):
            continue
        ours, theirs = ([100 * run["hypervolume"][-1] for run in both] for both in (searches["nsga2"], runs))
        found = paired_difference(ours, theirs)
        claims.append(
            claim_of_difference(
                f"hypervolume-{control}",
                f"With as many candidates the search covers more hypervolume than {control}",
                found,
                baseline=control,
                unit="% of the box",
            )
        )
    unmapped = list(outcomes["unmapped"].values())
    gained = paired_difference([u["mapped"] for u in unmapped], [u["scratch"] for u in unmapped])
    if len(unmapped) == 1:  # one seed: over the images that score candidates
        gained = PairedDifference(gained.mean, unmapped[0]["low"], unmapped[0]["high"], 1)
    claims.append(
        claim_of_difference(
            "mapping",
            "After the same short tuning a mapped candidate is more accurate than one from scratch",
            gained.times(100),
            baseline="from scratch",
            unit=POINTS,
        )
    )
    if delivered.get("difference") is not None:
        claims.append(
            claim(
                "onnx",
                "The exported network answers as PyTorch does",
                value=delivered["difference"],
                target="<= 0.001",
                unit="largest difference of a probability, or of a box as a share of its sides",
                baseline="PyTorch",
                chance=False,
            )
        )
    return claims


def points(outcomes: Mapping[str, Any], other: str) -> PairedDifference:
    """Difference of the found network's test mAP to an arm's in points: over seeds, or with one over test images."""
    if "differences" in outcomes:
        own: PairedDifference = outcomes["differences"][other]
        return own.times(100)
    mine, baseline = ([100 * run["test_map"] for run in outcomes["finals"][arm]] for arm in ("found", other))
    return paired_difference(mine, baseline)


def _equal_cost(finals: Mapping[str, Sequence[Mapping[str, Any]]]) -> Claim:
    found = [run["multiply_adds"] for run in finals["found"]]
    worst = max(
        (abs(run["multiply_adds"] / own - 1) for runs in finals.values() for run, own in zip(runs, found, strict=True)),
        default=0.0,
    )
    return claim(
        "equal-cost",
        "All compared networks are within 5 % of the found one's multiply-adds",
        value=100 * worst,
        target=f"<= {100 * CLOSE:g}",
        unit="% apart at most",
        baseline="the found network",
        chance=False,
        note="" if worst <= CLOSE else "Widths are multiples of eight, which are coarse steps in networks this small.",
    )


def _candidate_cost(outcomes: Mapping[str, Any]) -> Claim:
    searches, seeds = outcomes["searches"]["nsga2"], outcomes["seeds"]
    shares = [
        100 * run["seconds"] / len(run["candidates"]) / seed["seconds"]
        for run, seed in zip(searches, seeds.values(), strict=True)
    ]
    return claim(
        "candidate-cost",
        "A candidate costs at most a tenth of the seed's training",
        value=float(np.mean(shares)),
        target="<= 10",
        unit="% of the seed's training time",
        baseline="training of the seed",
        interval=_interval(shares),
        note="Seconds on the machine's clock, mapping, statistics, tuning and scoring together.",
    )


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    found = paired_difference(values, [0.0] * len(values))
    return found.low, found.high


def metrics_of(outcomes: Mapping[str, Any]) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over searches for each arm and each search."""
    metrics: dict[str, dict[str, float | list[float | None] | None]] = {}
    for arm, runs in outcomes["finals"].items():
        metrics[arm] = {
            "test_map": float(np.mean([run["test_map"] for run in runs])),
            "test_map50": float(np.mean([run["test_map50"] for run in runs])),
            "search_map": float(np.mean([run["search_map"] for run in runs])),
            "test_map_by_seed": [run["test_map"] for run in runs],
            "multiply_adds": float(np.mean([run["multiply_adds"] for run in runs])),
            "parameters": float(np.mean([run["parameters"] for run in runs])),
            "train_seconds": float(np.mean([run["seconds"] for run in runs])),
        }
    for strategy, runs in outcomes["searches"].items():
        metrics[f"search: {strategy}"] = {
            "hypervolume": float(np.mean([run["hypervolume"][-1] for run in runs])),
            "hypervolume_by_seed": [run["hypervolume"][-1] for run in runs],
            "candidates": float(np.mean([len(run["candidates"]) for run in runs])),
            "front": float(np.mean([len(run["front"]) for run in runs])),
            "seconds": float(np.mean([run["seconds"] for run in runs])),
        }
    seeds = list(outcomes["seeds"].values())
    metrics["seed"] = {
        "search_map": float(np.mean([seed["search_map"] for seed in seeds])),
        "train_seconds": float(np.mean([seed["seconds"] for seed in seeds])),
    }
    metrics["short scores"] = {
        "kendall_tau_untuned_tuned": rank_agreement(outcomes["searches"]["nsga2"]),
        "sd_of_one_genome_over_seeds": noise_of(outcomes),
    }
    return metrics


def rank_agreement(searches: Sequence[Mapping[str, Any]]) -> float | None:
    """Kendall's tau between the scores before and after tuning, mean over searches."""
    from scipy.stats import kendalltau

    found = []
    for run in searches:
        pairs = [(c["untuned"], c["score"]) for c in run["candidates"] if c.get("untuned") is not None]
        if len(pairs) > 2:
            value = float(kendalltau(*zip(*pairs, strict=True)).statistic)
            if np.isfinite(value):
                found.append(value)
    return float(np.mean(found)) if found else None


def noise_of(outcomes: Mapping[str, Any]) -> float:
    """Standard deviation of the short score of one genome over three seeds: what is closer is not told apart."""
    first = next(iter(outcomes["unmapped"].values()))
    return float(np.std([first["mapped"], *first["again"]], ddof=1))


def plots_of(outcomes: Mapping[str, Any], config: Config) -> list[Plot]:
    """The front with every candidate, hypervolume of all searches, accuracy of the arms, losses."""
    first = outcomes["searches"]["nsga2"][0]
    shown = {c["slot"]: c for c in first["candidates"] if c["violation"] == 0}
    front = [shown[slot] for slot in first["front"]]
    unit = config.search.objective.replace("_", " ")
    everything = [
        _cloud("candidates", list(shown.values())),
        _cloud("front", front),
    ]
    controls = [
        _cloud(strategy, [c for c in runs[0]["candidates"] if c["violation"] == 0])
        for strategy, runs in outcomes["searches"].items()
        if strategy != "nsga2"
    ]
    volumes = [
        Series(
            name=strategy,
            x=[float(g + 1) for g in range(min(len(run["hypervolume"]) for run in runs))],
            y=np.mean(
                [run["hypervolume"][: min(len(r["hypervolume"]) for r in runs)] for run in runs], axis=0
            ).tolist(),
        )
        for strategy, runs in outcomes["searches"].items()
    ]
    arms = outcomes["finals"]
    means = {arm: [100 * run["test_map"] for run in runs] for arm, runs in arms.items()}
    spread = [float(np.std(v, ddof=1)) for v in means.values()] if config.seeds > 1 else None
    return [
        Plot(
            id="arms",
            title="Test accuracy at equal cost",
            kind="bar",
            x_label="network",
            y_label="mAP on test images (%)",
            series=[Series(name="test", x=list(means), y=[float(np.mean(v)) for v in means.values()], error=spread)],
            caption="Means over searches; bars are one standard deviation.",
        ),
        Plot(
            id="front",
            title="Candidates of the first search",
            kind="scatter",
            x_label=f"{unit} of one image",
            y_label="mAP on the search split after short tuning",
            series=[*everything, *controls],
            caption="Every evaluated candidate within the limits; the front is what none of them dominates. A point "
            "tells its genome.",
        ),
        Plot(
            id="hypervolume",
            title="Hypervolume, generation by generation",
            kind="line",
            x_label="generation",
            y_label="share of the box between 0 and the limits",
            series=volumes,
            caption="Of all candidates so far, mean over searches; all searches train as many.",
        ),
        Plot(
            id="losses",
            title="Training of the compared networks",
            kind="line",
            x_label="epoch",
            y_label="loss",
            series=[
                Series(
                    name=arm,
                    x=[float(row["epoch"]) for row in runs[0]["history"]],
                    y=[row["train/loss"] for row in runs[0]["history"]],
                )
                for arm, runs in arms.items()
            ],
            caption="First search.",
        ),
    ]


def _cloud(name: str, candidates: Sequence[Mapping[str, Any]]) -> Series:
    """Candidates as points that tell their genomes."""
    return Series(
        name=name,
        x=[float(c["cost"]) for c in candidates],
        y=[c["score"] for c in candidates],
        labels=[f"slot {c['slot']}: {_text(c['genome'])}" for c in candidates],
    )


def tables_of(outcomes: Mapping[str, Any], config: Config) -> list[Table]:
    """Arms, the front with genomes, promotion, the found network beside the seed's."""
    rows: list[list[str | float | int | None]] = []
    for arm, runs in outcomes["finals"].items():
        maps = [100 * run["test_map"] for run in runs]
        rows.append(
            [
                arm,
                round(float(np.mean([run["multiply_adds"] for run in runs])) / 1e6, 3),
                round(float(np.mean([run["parameters"] for run in runs])) / 1e3, 1),
                round(float(np.mean([100 * run["search_map"] for run in runs])), 2),
                round(float(np.mean(maps)), 2),
                round(float(np.std(maps, ddof=1)), 2) if len(maps) > 1 else None,
                round(float(np.mean([run["seconds"] for run in runs])), 1),
            ]
        )
    first = outcomes["searches"]["nsga2"][0]
    by_slot = {c["slot"]: c for c in first["candidates"]}
    front = [
        [slot, by_slot[slot]["cost"], round(100 * by_slot[slot]["score"], 2), _text(by_slot[slot]["genome"])]
        for slot in first["front"]
    ]
    noise = noise_of(outcomes)
    promoted = [
        [seed, entry["slot"], round(100 * entry["short"], 2), ", ".join(f"{100 * v:.2f}" for v in entry["long"])]
        for seed, chosen in outcomes["promotion"].items()
        for entry in chosen["promoted"]
    ]
    return [
        Table(
            id="arms",
            title="The found network and others at its cost",
            columns=[
                "network",
                "multiply-adds (M)",
                "parameters (k)",
                "search mAP",
                "test mAP",
                "sd",
                "training time (s)",
            ],
            rows=rows,
            caption="Means over searches. All but the last arm begin from the same seed's weights.",
        ),
        Table(
            id="front-table",
            title="The front of the first search",
            columns=["slot", config.search.objective.replace("_", " "), "search mAP", "genome"],
            rows=front,
        ),
        Table(
            id="promotion",
            title="Promotion",
            columns=["search", "slot", "mAP after short tuning", "mAP after longer tuning"],
            rows=promoted,
            caption="The best of the longer tuning is trained to the end. Short scores that differ by less than "
            f"{200 * noise:.1f} points, two standard deviations of one genome over three seeds, are not told apart.",
        ),
        _networks(outcomes),
    ]


def _text(genome: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in genome.items())


def _networks(outcomes: Mapping[str, Any]) -> Table:
    """The first found network block by block, beside the seed's."""
    first = (outcomes["finals"]["found"][0], next(iter(outcomes["seeds"].values())))
    plans = [DetectorPlan.from_dict(own["plan"]).backbone for own in first]
    rows: list[list[str | float | int | None]] = []
    if all(isinstance(plan, MobilePlan) for plan in plans):
        found, beside = (plan for plan in plans if isinstance(plan, MobilePlan))
        for number in range(max(len(found.stages), len(beside.stages))):
            rows.append(
                [f"stage {number + 1}", *(" · ".join(map(_block, plan.stages[number])) for plan in (found, beside))]
            )
    else:
        rows.append(["whole", *(str(plan.to_dict()) for plan in plans)])
    return Table(
        id="networks",
        title="The found network, block by block",
        columns=["", "found", "seed"],
        rows=rows,
        caption="operator, kernel, expansion, output channels; the first block of a stage may halve the map.",
    )


def _block(block: BlockPlan) -> str:
    return f"{block.operator} k{block.kernel} e{block.expansion:.3g} → {block.width}"
