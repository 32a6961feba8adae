"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.results import Claim, Plot, Series, Table
from tenfold.statistics import claim_of_difference, paired_difference

_ONE_SEED = "One seed on a small test split: a difference of a few points is chance, whatever the verdict."

Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each arm, what pre-training and fine-tuning of every seed gave."""

Lengths = Mapping[str, Mapping[int, float]]
"""For arms, the first seed's accuracy by epochs of fine-tuning."""

PAPER = {
    "mae": 83.6, "cls": 80.6, "cls-reconstruct": 82.1, "feature-output": 83.7, "feature-ffn": 84.2,
    "feature-ffn-residual": 81.8, "feature-attention": 84.1, "feature-attention-residual": 81.3, "feature-qkv": 84.3,
    "qq-kk-vv-no-softmax": 84.4, "qq-kk-vv": 84.5, "no-softmax": 84.4, "relations": 84.6, "masked": 83.9,
    "masked-reconstruct": 84.0, "drop-path-0": 84.3, "drop-path-0.2": 84.3, "drop-path-0.3": 84.1,
    "teacher-drop-path": 83.9,
}  # fmt: skip
"""ImageNet top-1 of ViT-B after 100 epochs (TinyMIM, tables 4 to 13), where the paper has the arm."""


def metric_of(data: str) -> str:
    """The accuracy that counts: the mean over classes where they are unbalanced."""
    return "per_class" if data == "clothing64" else "top1"


def values_of(outcomes: Outcomes, arm: str, quantity: str, data: str) -> list[float]:
    """A number of an arm for each seed: ``full`` or ``few`` (test accuracy), ``knn``, ``linear``; in percent."""
    runs = outcomes[arm]
    if quantity in ("full", "few"):
        return [run[quantity]["test"][metric_of(data)] for run in runs]
    return [run[quantity] for run in runs]


def claims_of(outcomes: Outcomes, data: str, lengths: Lengths) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them."""
    claims: list[Claim] = []
    few = "few" in outcomes["relations"][0]
    alone = _ONE_SEED if len(outcomes["relations"]) == 1 else ""

    def compare(
        id: str, statement: str, ours: str, other: str, quantity: str = "full", target: str = "> 0", note: str = ""
    ) -> None:
        if ours in outcomes and other in outcomes and (quantity != "few" or few):
            found = paired_difference(
                values_of(outcomes, ours, quantity, data), values_of(outcomes, other, quantity, data)
            )
            claims.append(
                claim_of_difference(
                    id, statement, found, baseline=other, target=target, unit="accuracy points", note=note or alone
                )
            )

    compare(
        "mim-small",
        "Masked image modelling on the small student itself gains nothing over training from scratch",
        "mae",
        "scratch",
        target="<= 0",
    )
    if claims and not claims[0].holds:
        claims[0] = claims[0].model_copy(update={"note": f"{claims[0].note} {_of_length(lengths)}".strip()})
    compare("scratch", "Relation distillation beats training from scratch, all labels", "relations", "scratch")
    compare(
        "scratch-few", "Relation distillation beats training from scratch, few labels", "relations", "scratch", "few"
    )
    compare("mae", "Relations beat masked image modelling on the student", "relations", "mae")
    compare("cls", "Relations beat the class token as target", "relations", "cls")
    features = [arm for arm in outcomes if arm.startswith("feature-")]
    for arm in features:
        name = arm.removeprefix("feature-")
        compare(arm, f"Relations beat features ({name}) as target, all labels", "relations", arm)
        compare(f"{arm}-few", f"Relations beat features ({name}) as target, few labels", "relations", arm, "few")
    for other, statement in (
        ("qq-kk-vv", "Q-K and V-V are as good as Q-Q, K-K and V-V together"),
        ("no-softmax", "The softmax helps"),
        ("masked", "Clean input beats masked input"),
        ("masked-reconstruct", "Clean input beats masked input with reconstruction"),
        ("drop-path-0", "Drop path in the student helps"),
        ("teacher-drop-path", "A teacher without drop path is better"),
        ("mean-heads", "The adaptive block beats the mean over heads"),
    ):
        compare(other, statement, "relations", other, target=">= 0" if other == "qq-kk-vv" else "> 0")
    compare("chain", "Distilling through a network in between helps", "chain", "relations")
    return claims


def _of_length(lengths: Lengths) -> str:
    """What longer fine-tuning makes of the difference between the student's own autoencoder and none."""
    if not {"mae", "scratch"} <= set(lengths):
        return "Set finetune.longer to see whether the difference is one of the length of fine-tuning."
    short, long = sorted(lengths["mae"])
    before, after = (lengths["mae"][n] - lengths["scratch"][n] for n in (short, long))
    gained = lengths["scratch"][long] - lengths["scratch"][short]
    return (
        f"First seed: {before:+.1f} points after {short} epochs of fine-tuning, {after:+.1f} after {long}; from "
        f"scratch the longer one gives {gained:+.1f}."
    )


def summarise(outcomes: Outcomes, data: str) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, and the accuracies of the single seeds, for each arm."""
    table: dict[str, dict[str, float | list[float | None] | None]] = {}
    for arm, runs in outcomes.items():
        row: dict[str, float | list[float | None] | None] = {}
        for quantity in _quantities(outcomes):
            found = values_of(outcomes, arm, quantity, data)
            row[quantity] = float(np.mean(found))
            row[f"{quantity}_by_seed"] = list(found)
        row["validation"] = float(np.mean([run["full"]["validation"][metric_of(data)] for run in runs]))
        row["pretraining_seconds"] = float(np.mean([run["pretraining_seconds"] for run in runs]))
        row["head_reset"] = float(np.max([run["full"]["head_reset"] for run in runs]))
        for name in runs[0]["agreement"]:
            row[name] = float(np.mean([run["agreement"][name] for run in runs]))
        table[arm] = row
    return table


def _quantities(outcomes: Outcomes) -> list[str]:
    return ["full", *(["few"] if "few" in outcomes["relations"][0] else []), "knn", "linear"]


_TITLES = {"full": "all labels", "few": "few labels", "knn": "nearest neighbours", "linear": "linear classifier"}


def plots_of(outcomes: Outcomes, data: str, teacher: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Accuracy by arm, training curves of the pre-trainings."""
    arms = list(outcomes)
    accuracy = []
    for quantity in _quantities(outcomes):
        found = [values_of(outcomes, arm, quantity, data) for arm in arms]
        accuracy.append(
            Series(
                name=_TITLES[quantity],
                x=arms,
                y=[float(np.mean(values)) for values in found],
                error=[float(np.std(values, ddof=1)) for values in found] if len(found[0]) > 1 else None,
            )
        )
    plots = [
        Plot(
            id="accuracy",
            title="Accuracy of the student by what it was pre-trained on",
            kind="bar",
            x_label="arm",
            y_label="test accuracy (%)",
            series=accuracy,
            caption="Means over seeds; bars are one standard deviation. Nearest neighbours and linear classifier on "
            "frozen features of the block before the last.",
        )
    ]
    curves = {
        f"{arm}: {name.removeprefix('train/')}": [(row["epoch"], row[name]) for row in runs[0]["history"]]
        for arm, runs in outcomes.items()
        if runs[0]["history"]
        for name in runs[0]["history"][0]
        if name in ("train/qk", "train/vv", "train/qq", "train/kk")
    }
    if curves:
        plots.append(
            Plot(
                id="divergence",
                title="Divergence of the relations while pre-training",
                kind="line",
                x_label="epoch",
                y_label="nats per row",
                series=[
                    Series(name=name, x=[x for x, _ in points], y=[y for _, y in points])
                    for name, points in curves.items()
                ],
                caption="First seed. Relations of untrained networks are nearly uniform: the divergence starts small "
                "and falls fast; the agreement in the table is what to look at.",
            )
        )
    if teacher:
        plots.append(
            Plot(
                id="teacher",
                title="The teacher's reconstruction loss",
                kind="line",
                x_label="epoch",
                y_label="mean square over masked pixels",
                series=[Series(name="teacher", x=[r["epoch"] for r in teacher], y=[r["train/loss"] for r in teacher])],
            )
        )
    return plots


def tables_of(outcomes: Outcomes, data: str, lengths: Lengths) -> list[Table]:
    """Accuracies by arm beside the paper's, agreement of the relations, what each student's block went through."""
    quantities = _quantities(outcomes)
    rows = [
        [
            arm,
            *(round(float(np.mean(values_of(outcomes, arm, q, data))), 2) for q in quantities),
            round(float(np.mean([run["pretraining_seconds"] for run in runs])), 1),
            PAPER.get(arm),
        ]
        for arm, runs in outcomes.items()
    ]
    tables = [
        Table(
            id="accuracy",
            title="Test accuracy (%), means over seeds",
            columns=["arm", *(_TITLES[q] for q in quantities), "seconds", "paper"],
            rows=rows,
            caption=f"{'Mean per-class accuracy' if metric_of(data) == 'per_class' else 'Top-1'} after "
            "fine-tuning. Seconds: of pre-training. Paper: ViT-B on ImageNet, of which the order compares.",
        )
    ]
    agreeing = {arm: runs for arm, runs in outcomes.items() if runs[0]["agreement"]}
    if agreeing:
        names = sorted({name for runs in agreeing.values() for name in runs[0]["agreement"]})
        tables.append(
            Table(
                id="agreement",
                title="How far the student's relations agree with the teacher's",
                columns=["arm", *names],
                rows=[
                    [arm, *(_mean_or_none([run["agreement"].get(name) for run in runs]) for name in names)]
                    for arm, runs in agreeing.items()
                ],
                caption="overlap: share of the five tokens that a row attends to most, in common. share: divergence "
                "over that of a uniform student (1 is no better than uniform).",
            )
        )
    if lengths:
        epochs = sorted(next(iter(lengths.values())))
        tables.append(
            Table(
                id="lengths",
                title="Test accuracy (%) by epochs of fine-tuning, first seed",
                columns=["arm", *(str(n) for n in epochs)],
                rows=[[arm, *(round(found[n], 2) for n in epochs)] for arm, found in lengths.items()],
                caption="Whether pre-training is ahead for what it learnt or because a short fine-tuning has not "
                "converged.",
            )
        )
    return tables


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
