"""``rouge``: scores of summary files, printed as ROUGE-1.5.5 prints them; and two systems compared."""

from typing import Any

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.rouge.printing import format_scores, read_summaries
from tenfold.systems.query_summarizer.rouge.resampling import compare
from tenfold.systems.query_summarizer.rouge.scoring import Rouge
from tenfold.systems.query_summarizer.rouge.stemming import read_exceptions


def rouge(
    peers: str,
    models: str,
    *,
    duc: bool = False,
    measures: list[str] | None = None,
    limit: int = 0,
    bytes: int = 0,
    topics: bool = False,
    porter: bool = False,
    exceptions: str | None = None,
    against: str | None = None,
) -> str:
    """Score the summaries of a folder against references, to the fifth decimal as ROUGE-1.5.5 does.

    Args:
        peers: folder of summaries; names as NIST's (D0601.M.250.A.1) or TOPIC or TOPIC_AUTHOR.
        models: folder of reference summaries, named alike.
        duc: DUC's settings: ROUGE-1, -2, -SU4, the first 250 words.
        measures: of ROUGE-1 .. ROUGE-9, ROUGE-S4, ROUGE-SU4, ROUGE-L; ROUGE-1, -2 and -SU4 where not given.
        limit: words that count, 0 for all.
        bytes: bytes that count instead, 0 for all.
        topics: print each topic, too.
        porter: stem by Porter's rules alone, without WordNet's lists; not exact.
        exceptions: folder of WordNet's lists, where they are not found by themselves.
        against: a second folder of summaries: a paired test of the two instead of averages.
    """
    if duc and (measures or limit or bytes):
        raise UserError("--duc sets measures and limit: leave --measures, --limit and --bytes out")
    if limit and bytes:
        raise UserError("--limit and --bytes exclude each other")
    scorer = Rouge(
        measures or ("ROUGE-1", "ROUGE-2", "ROUGE-SU4"),
        limit=250 if duc else limit or bytes,
        unit="bytes" if bytes else "words",
        stem="porter" if porter else "wordnet",
        exceptions=read_exceptions(exceptions) if exceptions else None,
    )
    references = {topic: list(found.values()) for topic, found in read_summaries(models).items()}
    found = _systems(peers)
    if against is None:
        return "".join(
            format_scores(name or "X", scorer.corpus(lines, references), topics=topics) for name, lines in found.items()
        ).rstrip("\n")
    other = _systems(against)
    if len(found) != 1 or len(other) != 1:
        raise UserError("a paired test compares one system with another: each folder must hold one")
    first, second = next(iter(found.values())), next(iter(other.values()))
    if set(first) != set(second):
        raise UserError(
            f"the two systems have not the same topics: {sorted(set(first) ^ set(second))[0]!r} is in one only"
        )
    scores: list[Any] = [scorer.corpus(lines, references) for lines in (first, second)]
    lines = []
    for measure in scorer.measures:
        a, b = ([score[measure].topics[topic].recall for topic in sorted(first)] for score in scores)
        test = compare(a, b)
        lines.append(
            f"{measure} recall difference {test.difference:+.5f} (95 % {test.low:+.5f} .. {test.high:+.5f}), "
            f"p = {test.p_value:.4f} over {test.topics} topics"
        )
    return "\n".join(lines)


def _systems(folder: str) -> dict[str, dict[str, list[str]]]:
    """For each system of a folder its summaries by topic."""
    systems: dict[str, dict[str, list[str]]] = {}
    for topic, authors in read_summaries(folder).items():
        for author, lines in authors.items():
            systems.setdefault(author, {})[topic] = lines
    return systems
