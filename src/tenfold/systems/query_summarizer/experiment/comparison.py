"""What the arms' numbers say: claims, metrics, plots and tables of the results page."""

from collections.abc import Mapping, Sequence
from typing import Any

from tenfold.arms import Outcomes, bars, claim_of_difference, difference, mean, paired_bootstrap, spread
from tenfold.results import Claim, Plot, Series, Table, claim
from tenfold.systems.query_summarizer.experiment.settings import BASELINES, Config

POINTS = "ROUGE-2 recall points"
_TABLE_ROWS = 40


def sparse_arms(outcomes: Outcomes) -> list[str]:
    """Names of the sparse arms, such as ``fisher 5%``."""
    return [name for name in outcomes if name.endswith("%")]


def best_sparse(outcomes: Outcomes) -> str | None:
    """The sparse arm that is best on the held-back topics; the test topics do not choose."""
    names = sparse_arms(outcomes)
    return max(names, key=lambda name: mean(outcomes[name], "held_back_r2")) if names else None


def claims_of(outcomes: Outcomes, delivered: Mapping[str, Any]) -> list[Claim]:
    """The paper's claims, as far as the arms of the run allow to measure them."""
    claims: list[Claim] = []

    def over_topics(ours: str, other: str) -> str:
        by_topic = [[run["r2_by_topic"] for run in outcomes[name]] for name in (ours, other)]
        topics = paired_bootstrap(by_topic[0], by_topic[1])
        return f"Over test topics the 95 % interval is {topics.low:+.2f} .. {topics.high:+.2f}."

    def compare(id: str, statement: str, ours: str, other: str) -> None:
        if ours in outcomes and other in outcomes:
            found, note = difference(outcomes, "r2", ours, other), over_topics(ours, other)
            claims.append(claim_of_difference(id, statement, found, baseline=other, unit=POINTS, note=note))

    compare("augmentation", "Training on the large set first helps the target", "both", "stage2")
    compare("query", "The query matters: without it the same training is worse", "both", "both-no-query")
    compare("zero-shot", "The large set alone is already better than similarity of words", "stage1", "tfidf")
    best = "both" if "both" in outcomes else "stage2"
    compare("similarity", "The trained extractor beats similarity of words", best, "tfidf")
    compare("vectors", "The trained extractor beats similarity of the sentence vectors it reads", best, "cosine")
    compare("lead", "The trained extractor beats the lead of the documents", best, "lead")
    sparse = best_sparse(outcomes)
    if sparse is not None and "both" in outcomes:
        found = difference(outcomes, "r2", sparse, "both")
        note = f"The arm is {sparse}, chosen on held-back topics among {len(sparse_arms(outcomes))}. " + over_topics(
            sparse, "both"
        )
        statement = "Training a sparse subnetwork in stage 2 is as good as training all weights (within 0.2 points)"
        claims.append(
            claim_of_difference(
                "sparse-equal", statement, found, baseline="both", target=">= -0.2", unit=POINTS, note=note
            )
        )
        statement = "Training a sparse subnetwork in stage 2 is better than training all weights"
        claims.append(claim_of_difference("sparse-gain", statement, found, baseline="both", unit=POINTS, note=note))
        small = [name for name in sparse_arms(outcomes) if float(name.split()[-1].rstrip("%")) <= 5]
        if small:
            worst = max(
                mean(outcomes[name], "optimizer_bytes") / mean(outcomes["both"], "optimizer_bytes") for name in small
            )
            claims.append(
                claim(
                    "optimizer-state",
                    "At 5 % of the entries and below, the optimizer holds at most a tenth of what dense AdamW holds",
                    value=worst,
                    target="<= 0.1",
                    unit="share of the dense state",
                    baseline="AdamW on all weights",
                    chance=False,
                    note="Positions of the entries and the head's moments are counted.",
                )
            )
        claims.append(
            claim(
                "revert",
                "A diff that is applied and reverted leaves no entry changed",
                value=delivered["entries_changed_by_revert"],
                target="== 0",
                unit="entries",
                baseline="the weights before",
                note=f"{delivered['diffs_reverted']} diffs, of all sparse arms.",
            )
        )
    return claims


def metrics_of(
    outcomes: Outcomes, delivered: Mapping[str, Any]
) -> dict[str, dict[str, float | list[float | None] | None]]:
    """Means over seeds, and ROUGE-2 of the single seeds, for each arm."""
    found: dict[str, dict[str, float | list[float | None] | None]] = {}
    for arm, runs in outcomes.items():
        found[arm] = {name: mean(runs, name) for name in ("r1", "r2", "su4", "r1_f", "r2_f", "su4_f")}
        found[arm]["r2_by_seed"] = [run["r2"] for run in runs]
        if runs[0]["r2_no_plot"] is not None:
            found[arm]["r2_no_plot"] = mean(runs, "r2_no_plot")
        for name in ("optimizer_bytes", "trained", "diff_bytes", "train_seconds"):
            if runs[0].get(name) is not None:
                found[arm][name] = mean(runs, name)
    if delivered["human"]:
        found["human"] = dict(delivered["human"])
    return found


def summary_of(outcomes: Outcomes) -> str:
    """One sentence of measured numbers."""
    best = "both" if "both" in outcomes else "stage2"
    text = f"ROUGE-2 recall {mean(outcomes[best], 'r2'):.2f} against {mean(outcomes['tfidf'], 'r2'):.2f} by TF-IDF"
    if "both-no-query" in outcomes:
        text += f" and {mean(outcomes['both-no-query'], 'r2'):.2f} without the query"
    sparse = best_sparse(outcomes)
    if sparse is not None:
        size = mean(outcomes[sparse], "diff_bytes") / 1000
        share, score = sparse.split()[-1], mean(outcomes[sparse], "r2")
        text += f"; training {share} of the entries in stage 2 ({sparse}) gives {score:.2f}, a file of {size:,.0f} kB"
    return f"{text}."


def plots_of(outcomes: Outcomes) -> list[Plot]:
    """Scores of all arms, the sparse curve, what an arm's state and file weigh."""
    measures = (("ROUGE-1", "r1"), ("ROUGE-2", "r2"), ("ROUGE-SU4", "su4"))
    plots = [
        Plot(
            id="arms",
            title="ROUGE recall of all arms",
            kind="bar",
            x_label="arm",
            y_label="recall (points)",
            series=[bars(title, outcomes, name) for title, name in measures],
            caption="Means over seeds; bars are one standard deviation over seeds.",
        )
    ]
    names = sparse_arms(outcomes)
    shares = sorted({float(name.split()[-1].rstrip("%")) for name in names})
    if len(shares) > 1:  # else there is no curve
        series = []
        for criterion in dict.fromkeys(name.split()[0] for name in names):
            own = [f"{criterion} {share:g}%" for share in shares]
            series.append(
                Series(
                    name=criterion,
                    x=shares,
                    y=[mean(outcomes[name], "r2") for name in own],
                    error=[spread(outcomes[name], "r2") or 0.0 for name in own],
                )
            )
        for name, title in (("both", "all entries"), ("stage1", "none (stage 1)")):
            if name in outcomes:
                series.append(Series(name=title, x=shares, y=[mean(outcomes[name], "r2")] * len(shares)))
        plots.append(
            Plot(
                id="sparse",
                title="Score against the share of trained entries",
                kind="line",
                x_label="trained entries (%)",
                y_label="ROUGE-2 recall (points)",
                series=series,
                log_x=True,
                caption="Each arm at its own learning rate, chosen on held-back topics; bars: one standard deviation.",
            )
        )
    if names:
        held = ["both", *names] if "both" in outcomes else names
        plots.append(
            Plot(
                id="bytes",
                title="What a task costs",
                kind="bar",
                x_label="arm",
                y_label="kB",
                series=[
                    Series(
                        name="optimizer state",
                        x=held,
                        y=[mean(outcomes[n], "optimizer_bytes") / 1000 for n in held],
                    ),
                    Series(name="diff file", x=names, y=[mean(outcomes[n], "diff_bytes") / 1000 for n in names]),
                ],
                caption="Bytes of the optimizer beside the weights, and of the file that holds the task.",
            )
        )
    return plots


def tables_of(outcomes: Outcomes, rates: Mapping[str, Mapping[str, Any]], delivered: Mapping[str, Any]) -> list[Table]:
    """Scores, learning rates, and a summary with the query's influence on each of its sentences."""
    rows: list[list[str | float | int | None]] = []
    for arm, runs in outcomes.items():
        deviations = [
            spread(runs, name) if arm not in BASELINES or arm == "random" else None for name in ("r1", "r2", "su4")
        ]
        cells: list[str | float | int | None] = [arm]
        for name, deviation in zip(("r1", "r2", "su4"), deviations, strict=True):
            text = f"{mean(runs, name):.2f}"
            cells.append(text if deviation is None else f"{text} ± {deviation:.2f}")
        low, high = runs[0]["r2_interval"]
        plot = runs[0]["r2_no_plot"]
        rows.append([*cells, f"{low:.2f} .. {high:.2f}", None if plot is None else round(mean(runs, "r2_no_plot"), 2)])
    if delivered["human"]:
        human = delivered["human"]
        rows.append(["a person (first reference)", f"{human['r1']:.2f}", f"{human['r2']:.2f}", None, None, None])
    plots = ["ROUGE-2, no plots"] if any(row[5] is not None for row in rows) else []
    tables = [
        Table(
            id="scores",
            title=f"ROUGE recall at {delivered['words']} words",
            columns=["arm", "ROUGE-1", "ROUGE-2", "ROUGE-SU4", "ROUGE-2, over topics", *plots],
            rows=[row[: 5 + len(plots)] for row in rows],
            caption="Mean and standard deviation over seeds. Over topics: ROUGE-1.5.5's own 95 % interval, first seed. "
            + ("No plots: without questions about a whole plot. " if plots else "")
            + "The person is scored against the other references only.",
        )
    ]
    if rates:
        costs: list[list[str | float | int | None]] = []
        for name, found in rates.items():
            runs = outcomes[name]
            tried = ", ".join(f"{rate:g}: {score:.2f}" for rate, score in found["scores"])
            size = round(mean(runs, "diff_bytes")) if runs[0].get("diff_bytes") is not None else None
            costs.append(
                [
                    name,
                    f"{found['rate']:g}",
                    tried,
                    round(mean(runs, "trained")),
                    round(mean(runs, "optimizer_bytes")),
                    size,
                ]
            )
        tables.append(
            Table(
                id="rates",
                title="Learning rates and costs of stage 2",
                columns=[
                    "arm",
                    "chosen rate",
                    "held-back ROUGE-2 by rate",
                    "trained entries",
                    "optimizer bytes",
                    "diff bytes",
                ],
                rows=costs,
                caption="Rates are multiples of stage 2's learning rate, chosen on held-back topics, first seed.",
            )
        )
    tables.append(
        Table(
            id="summary",
            title=f"A summary: {delivered['query']}",
            columns=["rank", "document", "characters", "sentence", "score", "query's influence"],
            rows=[
                [
                    quote["rank"],
                    quote["document"],
                    f"{quote['start']}-{quote['end']}",
                    quote["text"],
                    round(quote["score"], 3),
                    round(quote["score"] - quote["without_query"], 3),
                ]
                for quote in delivered["quotes"][:_TABLE_ROWS]
            ],
            caption="Influence: the score minus the score with the query masked. documents.html beside this page shows "
            "the sentences marked in their documents.",
        )
    )
    return tables


def notes_of(config: Config, delivered: Mapping[str, Any]) -> Sequence[str]:
    """What a reader must know to judge the numbers."""
    notes = [
        "Learning rates and epochs are chosen on held-back topics of the target, in every trained arm alike; the test "
        "topics are only measured.",
        f"Scores are ROUGE-1.5.5's at {delivered['words']} words, recall averaged over references.",
    ]
    if delivered["stemmer"] == "porter":
        notes.append(
            "WordNet's lists of irregular forms were not found: tokens are stemmed by Porter's rules alone, and scores "
            "differ a little from ROUGE-1.5.5's. pip install 'tenfold[rouge]' brings them."
        )
    if config.data.name == "squality":
        notes.append(
            "QMSum stands in for WikiRef, whose release could not be read here; SQuALITY, which is shaped like DUC and "
            "free, for DUC."
        )
    if config.model.kind == "fast":
        notes.append(
            f"The extractor is a small Transformer on frozen sentence vectors ({delivered['encoder']}), not BERT: a "
            "sparse subnetwork of so small a network is another thing than one of BERT."
        )
    return notes
