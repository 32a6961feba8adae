"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence

from tenfold.arms import (
    Outcomes,
    Quantity,
    bars,
    claim_of_difference,
    difference,
    mean,
    over_seeds,
    paired_bootstrap,
)
from tenfold.results import Claim, Plot, Series, Table

Lengths = Mapping[str, Mapping[int, float]]
"""For arms, the first seed's accuracy by epochs of fine-tuning."""

PAPER = {
    "mae": 83.6,
    "cls": 80.6,
    "cls-reconstruct": 82.1,
    "feature-output": 83.7,
    "feature-ffn": 84.2,
    "feature-ffn-residual": 81.8,
    "feature-attention": 84.1,
    "feature-attention-residual": 81.3,
    "feature-qkv": 84.3,
    "qq-kk-vv-no-softmax": 84.4,
    "qq-kk-vv": 84.5,
    "no-softmax": 84.4,
    "relations": 84.6,
    "masked": 83.9,
    "masked-reconstruct": 84.0,
    "drop-path-0": 84.3,
    "drop-path-0.2": 84.3,
    "drop-path-0.3": 84.1,
    "teacher-drop-path": 83.9,
}
"""ImageNet top-1 of ViT-B after 100 epochs (TinyMIM, tables 4 to 13), where the paper has the arm."""


def metric_of(data: str) -> str:
    """The accuracy that counts: the mean over classes where they are unbalanced."""
    return "per_class" if data == "clothing64" else "top1"


def quantity_of(name: str, data: str) -> Quantity:
    """A number of a run: ``full`` or ``few`` (test accuracy), ``knn``, ``linear``; in percent."""
    if name in ("full", "few"):
        return lambda run: run[name]["test"][metric_of(data)]
    return name


def claims_of(outcomes: Outcomes, data: str, lengths: Lengths) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them.

    Intervals are over seeds; with one seed, over its test images.
    """
    claims: list[Claim] = []
    alone = len(outcomes["relations"]) == 1

    def compare(
        id: str, statement: str, ours: str, other: str, quantity: str = "full", target: str = "> 0", note: str = ""
    ) -> None:
        if ours not in outcomes or other not in outcomes or quantity not in outcomes["relations"][0]:
            return
        if alone:
            found = paired_bootstrap(*(outcomes[arm][0][quantity]["scores"] for arm in (ours, other)))
            note = f"{note} One seed: the interval is over its test images, not over trainings.".strip()
        else:
            found = difference(outcomes, quantity_of(quantity, data), ours, other)
        claims.append(
            claim_of_difference(id, statement, found, baseline=other, target=target, unit="accuracy points", note=note)
        )

    compare(
        "mim-small",
        "Masked image modelling on the small student itself gains nothing over training from scratch",
        "mae",
        "scratch",
        target="<= 0",
        note=_of_length(lengths),
    )
    compare("scratch", "Relation distillation beats training from scratch, all labels", "relations", "scratch")
    compare(
        "scratch-few", "Relation distillation beats training from scratch, few labels", "relations", "scratch", "few"
    )
    compare("mae", "Relations beat masked image modelling on the student", "relations", "mae")
    compare("cls", "Relations beat the class token as target", "relations", "cls")
    for arm in (arm for arm in outcomes if arm.startswith("feature-")):
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


def summary_of(outcomes: Outcomes, data: str, params: int) -> str:
    """What the reader gets, in one sentence of measured numbers."""
    full = quantity_of("full", data)
    ours = mean(outcomes["relations"], full)
    sentence = (
        f"A student of {params:,} parameters that learnt its teacher's relations without labels reaches {ours:.1f} %"
    )
    others = {"scratch": "from scratch", "mae": "as a masked autoencoder itself", "feature-qkv": "by features"}
    known = [(name, words) for name, words in others.items() if name in outcomes]
    if known:
        sentence += " after fine-tuning, against " + ", ".join(
            f"{mean(outcomes[name], full):.1f} % {words}" for name, words in known
        )
    if "few" in outcomes["relations"][0] and "scratch" in outcomes:
        few = quantity_of("few", data)
        sentence += (
            f"; with few labels {mean(outcomes['relations'], few):.1f} % against {mean(outcomes['scratch'], few):.1f} %"
        )
    return sentence + "."


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
            found = over_seeds(runs, quantity_of(quantity, data)).tolist()
            row[quantity] = mean(runs, quantity_of(quantity, data))
            row[f"{quantity}_by_seed"] = found
        row["validation"] = mean(runs, lambda run: run["full"]["validation"][metric_of(data)])
        row["pretraining_seconds"] = mean(runs, "pretraining_seconds")
        row["head_reset"] = float(over_seeds(runs, lambda run: run["full"]["head_reset"]).max())
        for name in runs[0]["agreement"]:
            row[name] = mean(runs, lambda run, name=name: run["agreement"][name])  # type: ignore[misc]
        table[arm] = row
    return table


def _quantities(outcomes: Outcomes) -> list[str]:
    return ["full", *(["few"] if "few" in outcomes["relations"][0] else []), "knn", "linear"]


_TITLES = {"full": "all labels", "few": "few labels", "knn": "nearest neighbours", "linear": "linear classifier"}


def plots_of(outcomes: Outcomes, data: str, teacher: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Accuracy by arm, training curves of the pre-trainings."""
    accuracy = [bars(_TITLES[name], outcomes, quantity_of(name, data)) for name in _quantities(outcomes)]
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
            *(round(mean(runs, quantity_of(name, data)), 2) for name in quantities),
            round(mean(runs, "pretraining_seconds"), 1),
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
    return round(sum(known) / len(known), 4) if known else None
