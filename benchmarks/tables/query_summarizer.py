"""Tables of the query summarizer."""

import json
from typing import Any

from tables.markdown import RESULTS, claims_of, named_table, table
from tenfold.results import load_results


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"query-summarizer-{name}.json").read_text(encoding="utf-8"))


def small() -> str:
    """Scores, claims and learning rates of the preset small."""
    results = load_results(RESULTS / "query-summarizer-small.json")
    known = results.environment
    stopped = float(known.get("stopped_seconds") or 0)  # the whole machine's, by whoever ran it
    pause = f" (and {stopped / 60:.0f} in which all work on it was stopped)" if stopped else ""
    return "\n\n".join(
        [
            f"`tenfold run query-summarizer --preset small`: {known['data']}; {known['stage1_topics']} topics of the "
            f"large set, {known['train_topics']} training, {known['held_back_topics']} held-back and "
            f"{known['test_topics']} test topics; sentence vectors {known['encoder']}; "
            f"{(results.cost.seconds - stopped) / 60:.0f} minutes on two cores of a machine that did other work "
            f"beside it{pause}.",
            named_table(results, "scores"),
            "Claims, paired over seeds (not settled: the interval includes the target):",
            claims_of(results),
            named_table(results, "rates"),
        ]
    )


def sparse() -> str:
    """Ways to fine-tune, on one model."""
    found = _read("sparse")
    dense = next(row for row in found["rows"] if row["method"] == "dense AdamW")
    rows = [
        [
            row["method"],
            f"{row['trained']:,}",
            f"{row['score']:.2f}",
            "-" if row is dense else "{:+.2f} ({:+.2f} .. {:+.2f})".format(*row["against_dense"]),
            f"{row['optimizer_bytes'] / 1e6:.2f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['step_seconds'] / dense['step_seconds']:.2f}",
            f"{row['file_bytes'] / 1e3:,.0f}",
            f"{row['apply_ms']:.1f} / {row['revert_ms']:.1f}",
            f"{row['changed_by_revert']:,}",
        ]
        for row in found["rows"]
    ]
    columns = [
        "",
        "trained entries",
        "score",
        "against dense",
        "optimizer state (MB)",
        "peak memory of a step (MB)",
        "time of a step (dense = 1)",
        "file (kB)",
        "apply / revert (ms)",
        "entries changed by reverting",
    ]
    bank = found["bank"]
    return "\n\n".join(
        [
            f"`python benchmarks/query_summarizer_sparse.py`: Q-BERT on all-MiniLM-L6-v2 ({found['weights']:,} "
            "weights), "
            f"{found['steps']} steps of {found['batch']} windows, each method at the better of its two rates "
            "on held-back "
            "windows; score: average precision of the oracle's sentences (%) over "
            f"{found['test_windows']} test windows, differences with a paired bootstrap over windows; LoRA and "
            "SHiRA by PEFT "
            f"{found['environment']['peft']}.",
            table(columns, rows),
            f"{bank['tenants']} diffs of at most {bank['largest_file_bytes'] / 1e3:.0f} kB on one base, "
            "swapped in place "
            f"{bank['swaps']:,} times: {bank['swap_ms']:.2f} ms a swap, {bank['changed']} entries changed at "
            "the end.",
        ]
    )


def rouge() -> str:
    """Speed of scorers, and how far they are off where that was measured."""
    found = _read("rouge")
    measures = [
        name for name in ("ROUGE-1", "ROUGE-2") if any(name in row["points_from_exact"] for row in found["rows"])
    ]
    rows = [
        [row["what"], f"{row['seconds']:.2f}"]
        + [f"{row['points_from_exact'][name]:.2f}" if name in row["points_from_exact"] else "-" for name in measures]
        for row in found["rows"]
    ]
    return "\n\n".join(
        [
            f"`python benchmarks/query_summarizer_rouge.py`: {found['pairs']:,} pairs, {found['words']:,} words, "
            f"seconds of one thread: {found['faster']:.1f} times as fast as rouge-score at ROUGE-1 and -2, "
            f"{found['faster_with_l']:.1f} times with ROUGE-L.",
            table(["", "seconds", *(f"{name} recall off by (points)" for name in measures)], rows),
        ]
    )


def wikiref() -> str:
    """The builder on a real and on a long dump."""
    found = _read("wikiref")
    parts = []
    if "real" in found:
        real = found["real"]
        parts.append(
            "`python benchmarks/query_summarizer_wikiref.py --real`: a real dump of "
            f"{real['articles']} articles, {real['references']:,} references, {real['statements']:,} "
            "statements that cite "
            f"a page of text ({real['statements_with_a_lost_template']} lost a template, "
            f"{real['statements_of_8_to_100_words']:,} have 8 to 100 words), {real['queries']:,} queries, "
            f"{real['addresses']:,} addresses; {real['articles_per_second']:.0f} of these long articles a "
            "second on one "
            f"core. Of {real['read_by_eye']} statements read by eye {real['right']} have the right query "
            "and are whole and "
            f"clean ({real['note']})."
        )
    if "long" in found:
        long = found["long"]
        memory = ", ".join(f"{value:.0f}" for value in long["memory_by_tenth_mb"])
        parts.append(
            f"Without `--real`: {long['articles']:,} synthetic articles, {long['articles_per_second']:.0f} "
            "a second on one "
            f"core; resident memory after each tenth of them: {memory} MB, {long['memory_after_mb']:.0f} MB after "
            "duplicates and splits."
        )
    return "\n\n".join(parts)


PARTS = {"small": small, "sparse": sparse, "rouge": rouge, "wikiref": wikiref}
"""Parts of the room's page that are made from results, by the name in the comment before them."""
