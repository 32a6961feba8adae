"""``summarize``, ``tenfold predict`` and ``tenfold evaluate``: summaries of files, and their scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import refuse_overwriting, write_atomically
from tenfold.models.folder import load_manifest
from tenfold.run import read_config
from tenfold.systems.query_summarizer.experiment.settings import sets_arguments
from tenfold.systems.query_summarizer.extractor.summarizer import QuerySummarizer
from tenfold.systems.query_summarizer.load import SYSTEM, load
from tenfold.systems.query_summarizer.rouge.scoring import Rouge
from tenfold.systems.query_summarizer.rouge.stemming import find_exceptions
from tenfold.systems.query_summarizer.selection.summary import Summary
from tenfold.systems.query_summarizer.sets.load_sets import load_sets
from tenfold.systems.query_summarizer.sets.rows import read_rows
from tenfold.systems.query_summarizer.sets.topic import Topic, require_references
from tenfold.systems.query_summarizer.text.reading import read_documents
from tenfold.systems.query_summarizer.text.words import content_words

Block = Literal["trigram", "bigram-ratio", "cosine", "mmr", "none"]


def summarize(
    inputs: list[str],
    *,
    query: str,
    run: str | None = None,
    words: int | None = 250,
    threshold: float | None = None,
    block: Block = "trigram",
    order: Literal["score", "document"] = "score",
    hard_limit: bool = False,
    explain: bool = False,
    json: bool = False,
) -> str:
    """Answer a question with sentences of files or folders; without a trained run by TF-IDF, which it says.

    Args:
        inputs: text, HTML or JSONL files, or folders of them.
        query: the question or topic.
        run: folder of a run or model; TF-IDF where not given.
        words: budget in words; whole sentences are added until it is reached. null with a threshold.
        threshold: least score of a sentence; there may then be none.
        block: how repetitions are told.
        order: score (best first) or document.
        hard_limit: never exceed the budget.
        explain: score every sentence without the query, too.
        json: one JSON line instead of text.
    """
    summarizer = load(run) if run else QuerySummarizer()
    summary = summarizer.summarize(
        query,
        read_documents(inputs),
        words=words,
        threshold=threshold,
        block=block,
        order=order,
        hard_limit=hard_limit,
        explain=explain,
    )
    return summary.to_json() if json else _readable(summary, trained=run is not None)


def _readable(summary: Summary, trained: bool) -> str:
    lines = [f"# {summary.query}"]
    if not trained:
        lines.append("# scored by TF-IDF, without a trained model; name one with --run")
        if not content_words(summary.query):
            lines.append("# the query has no word to look for: sentences are compared with the whole text")
        elif summary.quotes and all(quote.score == 0 for quote in summary.quotes):
            lines.append("# no word of the query is in the documents: these are merely their first sentences")
    for quote in summary.quotes:
        influence = ""
        if quote.without_query is not None:
            influence = f", query {quote.score - quote.without_query:+.3f}"
        place = f"{quote.document}:{quote.start}-{quote.end}"
        lines.append(f"[{quote.rank}] {' '.join(quote.text.split())}  ({place}, score {quote.score:.3f}{influence})")
    if not summary.quotes:
        lines.append("# no sentence reaches the threshold")
    return "\n".join(lines)


def predict(
    run: str,
    inputs: list[str],
    *,
    query: str | None = None,
    words: int | None = None,
    threshold: float | None = None,
    explain: bool = False,
) -> str:
    """Summaries by a run's extractor, one JSON line each: of the files for one query, or of each row of JSONL files.

    Args:
        run: folder of a run or model.
        inputs: with --query, documents of it; else JSONL files whose rows have a query and documents.
        query: the question or topic.
        words: budget in words; that of the run where not given.
        threshold: least score of a sentence.
        explain: score every sentence without the query, too.
    """
    summarizer, budget = load(run), words or int(load_manifest(run, SYSTEM).extra.get("words", 250))
    if query is not None:
        tasks = [("", query, read_documents(inputs))]
    else:
        for name in inputs:
            if not Path(name).exists():
                raise UserError(f"there is no file {name}")
            if ".jsonl" not in name:
                raise UserError(f"{name} holds no query: give one with --query, or a JSONL file whose rows have one")
        topics = [topic for name in inputs for topic in read_rows(name, references=False)]
        tasks = [(topic.id, topic.query, list(topic.documents)) for topic in topics]
    lines = []
    for name, asked, documents in tasks:
        made = summarizer.summarize(asked, documents, words=budget, threshold=threshold, explain=explain)
        row = json.loads(made.to_json())
        lines.append(json.dumps({"id": name, **row} if name else row, ensure_ascii=False))
    return "\n".join(lines)


def evaluate(
    run: str,
    *,
    data: str | None = None,
    words: int | None = None,
    fields: dict[str, str] | None = None,
    summaries: str | None = None,
) -> dict[str, Any]:
    """ROUGE of a run's extractor on its own test topics, or on a JSONL file of topics.

    Args:
        run: folder of a run or model.
        data: JSONL file; the run's own test topics where not given.
        words: budget of a summary and limit of ROUGE; that of the run where not given.
        fields: names of the fields query, document, summary of the file; guessed where not given.
        summaries: file to write the summaries to, one JSON line each.
    """
    manifest = load_manifest(run, SYSTEM)
    budget = words or int(manifest.extra.get("words", 250))
    if data is not None:
        name, topics = data, list(require_references(read_rows(data, fields)))
    else:
        if not (Path(run) / "config.yaml").exists():
            raise UserError(f"{run} names no data: name a JSONL file with --data")
        config = read_config(run)
        sets = load_sets(**sets_arguments(config["preset"], config["data"]))
        name, topics = sets.name, list(sets.test)
    summarizer = load(run)
    made = {
        str(number): summarizer.summarize(
            topic.query,
            topic.documents,
            words=budget,
            block=manifest.extra.get("block", "trigram"),
            cut_query=True,
        )
        for number, topic in enumerate(topics)
    }
    if summaries is not None:
        refuse_overwriting(summaries, *([data] if data else []))
        rows = (made[str(number)].to_json() for number in range(len(topics)))
        write_atomically(summaries, "\n".join(rows) + "\n")
    cut = sum(summarizer.unread_pieces(topic.query) > 0 for topic in topics)
    return {
        "data": name,
        "topics": len(topics),
        **({"queries_cut": cut} if cut else {}),
        "words": budget,
        **_scores(made, topics, budget),
    }


def _scores(made: dict[str, Summary], topics: Sequence[Topic], budget: int) -> dict[str, Any]:
    stem: Literal["wordnet", "porter"] = "wordnet" if find_exceptions() else "porter"
    found = Rouge(limit=budget, stem=stem).corpus(
        {number: summary.lines for number, summary in made.items()},
        {str(number): topic.references for number, topic in enumerate(topics)},
    )
    return {
        "stemmer": stem,
        **{
            measure: {
                "recall": round(100 * score.recall.plain_mean, 3),
                "interval": [round(100 * score.recall.low, 3), round(100 * score.recall.high, 3)],
                "f": round(100 * score.f.plain_mean, 3),
            }
            for measure, score in found.items()
        },
    }
