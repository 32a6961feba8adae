"""Speed of the ROUGE scorer, side by side with rouge-score and rouge-metric on the same pairs.

    TENFOLD_DATA=DIR python benchmarks/query_summarizer_rouge.py [--pairs 1000] [--out FILE]

A pair is the lead of a story of SQuALITY (250 words) and one reference summary of a question about it. Every package
gets the same strings, starts fresh, and scores ROUGE-1 and ROUGE-2 with stemming; ours also all that DUC asks for, and
ROUGE-L where rouge-score gives it. Processor time of one thread, best of three passes taken in turns; rouge-metric is
the pure-Python form, which does not stem.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tenfold.files import write_atomically
from tenfold.systems.query_summarizer.rouge.scoring import DUC_MEASURES, Rouge
from tenfold.systems.query_summarizer.sets.squality import read_squality

Pair = tuple[list[str], list[str]]
WORDS = 250


def pairs_of_squality(count: int) -> list[Pair]:
    """Lines of a lead and of a reference."""
    folder = Path(os.environ["TENFOLD_DATA"]) / "query-summaries/squality"
    pairs: list[Pair] = []
    for topic in [*read_squality(folder, "dev"), *read_squality(folder, "train")]:
        lead, used = [], 0
        for sentence in topic.documents[0].sentences:
            if used >= WORDS:
                break
            lead.append(" ".join(sentence.text.split()))
            used += len(lead[-1].split())
        pairs += [(lead, list(reference)) for reference in topic.references]
    return pairs[:count]


def ours(measures: tuple[str, ...]) -> Callable[[list[Pair]], list[dict[str, float]]]:
    """A fresh scorer per pass: stems and references are counted anew."""

    def score(pairs: list[Pair]) -> list[dict[str, float]]:
        scorer = Rouge(measures, limit=0)
        return [
            {name: value.recall for name, value in scorer.score(peer, [reference]).items()} for peer, reference in pairs
        ]

    return score


def rouge_score(kinds: list[str]) -> Callable[[list[Pair]], list[dict[str, float]]]:
    """Google's package; lines are joined by newlines, which its summary level wants."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-L"}

    def score(pairs: list[Pair]) -> list[dict[str, float]]:
        scorer = RougeScorer(kinds, use_stemmer=True)
        return [
            {names[kind]: value.recall for kind, value in scorer.score("\n".join(reference), "\n".join(peer)).items()}
            for peer, reference in pairs
        ]

    return score


def rouge_metric(pairs: list[Pair]) -> list[dict[str, float]]:
    """The package rouge-metric, in Python."""
    from rouge_metric import PyRouge

    scorer = PyRouge(rouge_n=(1, 2))
    found = []
    for peer, reference in pairs:
        scores = scorer.evaluate(["\n".join(peer)], [["\n".join(reference)]])
        found.append({"ROUGE-1": scores["rouge-1"]["r"], "ROUGE-2": scores["rouge-2"]["r"]})
    return found


def main() -> None:
    """Time all, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "query-summarizer-rouge.json"))
    arguments = parser.parse_args()
    pairs = pairs_of_squality(arguments.pairs)
    calls = {
        "tenfold, ROUGE-1 and -2": ours(("ROUGE-1", "ROUGE-2")),
        "rouge-score, ROUGE-1 and -2": rouge_score(["rouge1", "rouge2"]),
        "rouge-metric, ROUGE-1 and -2, not stemmed": rouge_metric,
        "tenfold, ROUGE-1, -2 and -SU4": ours(DUC_MEASURES),
        "tenfold, ROUGE-1, -2 and -L": ours(("ROUGE-1", "ROUGE-2", "ROUGE-L")),
        "rouge-score, ROUGE-1, -2 and -L": rouge_score(["rouge1", "rouge2", "rougeLsum"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    scores: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.passes):
        for name, call in calls.items():
            start = time.process_time()
            scores[name] = call(pairs)
            seconds[name].append(time.process_time() - start)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    exact = scores["tenfold, ROUGE-1, -2 and -L"]
    rows = []
    for name, found in scores.items():
        apart = {
            measure: 100 * sum(abs(a[measure] - b[measure]) for a, b in zip(found, exact, strict=True)) / len(pairs)
            for measure in found[0]
            if measure in exact[0]
        }
        rows.append({"what": name, "seconds": min(seconds[name]), "points_from_exact": apart})
    by_name = {row["what"]: row["seconds"] for row in rows}
    content = {
        "pairs": len(pairs),
        "words": sum(len(" ".join([*peer, *reference]).split()) for peer, reference in pairs),
        "rows": rows,
        "faster": by_name["rouge-score, ROUGE-1 and -2"] / by_name["tenfold, ROUGE-1 and -2"],
        "faster_with_l": by_name["rouge-score, ROUGE-1, -2 and -L"] / by_name["tenfold, ROUGE-1, -2 and -L"],
        "environment": {"rouge-score": version("rouge-score"), "rouge-metric": version("rouge-metric"), "threads": 1},
    }
    write_atomically(arguments.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
