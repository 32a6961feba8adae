"""ROUGE-1.5.5 in Python: the figures of the Perl script to the fifth decimal.


    hits(n) = sum over references of sum over units of min(count in peer, count in reference)
    R = hits / sum over references of units in the reference
    P = hits / (references x units in the peer)
    F = P R / ((1 - alpha) P + alpha R)          from R and P as rounded to five decimals

Source: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; the rules of the script in which the
paper's text leaves a choice are those of ROUGE-1.5.5 with ``-n 2 -x -m -2 4 -u -c 95 -r 1000 -f A -p 0.5 -t 0``.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.rouge.counting import (
    clipped_hits,
    encode_lines,
    limit_lines,
    ngrams,
    skip_bigrams,
    tokens_of,
)
from tenfold.systems.query_summarizer.rouge.longest import union_lcs_hits
from tenfold.systems.query_summarizer.rouge.resampling import Interval, bootstrap_interval
from tenfold.systems.query_summarizer.rouge.stemming import Stemmer, read_exceptions

DUC_MEASURES = ("ROUGE-1", "ROUGE-2", "ROUGE-SU4")
_COUNTERS: dict[str, Callable[[list[str]], Counter]] = {
    **{f"ROUGE-{n}": lambda tokens, n=n: ngrams(tokens, n) for n in range(1, 10)},  # type: ignore[misc]
    "ROUGE-S4": lambda tokens: skip_bigrams(tokens, unigrams=False),
    "ROUGE-SU4": skip_bigrams,
}
Lines = Sequence[str]


@dataclass(frozen=True)
class Score:
    """Recall, precision and F of one summary, in [0, 1], rounded to five decimals as the script prints them."""

    recall: float
    precision: float
    f: float


@dataclass(frozen=True)
class CorpusScore:
    """One measure over all topics.

    Attributes:
        topics: score of each topic, by its id.
        recall: average and 95 % interval, from 1000 resamples as the script draws them.
        precision: the same of precision.
        f: the same of F.
    """

    topics: dict[str, Score]
    recall: Interval
    precision: Interval
    f: Interval


class Rouge:
    """A scorer with its settings; references that come again are counted once.

    Args:
        measures: of ``ROUGE-1`` .. ``ROUGE-9``, ``ROUGE-S4``, ``ROUGE-SU4``, ``ROUGE-L`` (summary level).
        limit: words of peers and references that count, from their beginning; 0 for all. DUC: 250.
        unit: what the limit counts: ``words`` (``-l``) or ``bytes`` (``-b``).
        stem: ``wordnet`` (the script's: irregular forms, then Porter), ``porter`` (rules alone: not exact), or
            ``none``.
        alpha: weight of precision in F, in [0, 1].
        exceptions: irregular forms for ``wordnet``; found by ``read_exceptions`` where ``None``.

    Raises:
        UserError: a setting is not one of these, or the lists of irregular forms are missing.
    """

    def __init__(
        self,
        measures: Sequence[str] = DUC_MEASURES,
        *,
        limit: int = 250,
        unit: Literal["words", "bytes"] = "words",
        stem: Literal["wordnet", "porter", "none"] = "wordnet",
        alpha: float = 0.5,
        exceptions: Mapping[str, str] | None = None,
    ) -> None:
        unknown = [name for name in measures if name not in _COUNTERS and name != "ROUGE-L"]
        if unknown or not measures:
            raise UserError(f"there is no measure {unknown[0] if unknown else ''!r}; there are: {_NAMES}")
        if limit < 0 or not 0 <= alpha <= 1:
            raise UserError(f"limit must not be negative and alpha lies in [0, 1]; got {limit} and {alpha}")
        self.measures = tuple(measures)
        self.limit, self.unit, self.alpha = limit, unit, alpha
        if stem == "none":
            self.stemmer = None
        elif stem == "porter":
            self.stemmer = Stemmer({})
        elif stem == "wordnet":
            self.stemmer = Stemmer(read_exceptions() if exceptions is None else exceptions)
        else:
            raise UserError(f"stem is wordnet, porter or none; got {stem!r}")
        self._references: dict[tuple[str, ...], _Counted] = {}

    def score(self, peer: Lines, references: Sequence[Lines]) -> dict[str, Score]:
        """Scores of one summary by measure.

        Args:
            peer: its lines or sentences; empty ones do not count.
            references: lines of each reference.

        Raises:
            UserError: there is no reference, or a summary is one string.
        """
        if isinstance(references, str) or (references and isinstance(references[0], str)):
            raise UserError("references are a list of summaries, each a list of lines; one reference goes into a list")
        if not references:
            raise UserError("a topic has no reference summary: there is nothing to score against")
        counted = self._count(peer)
        others = [self._reference(reference) for reference in references]
        return {name: self._measure(name, counted, others) for name in self.measures}

    def corpus(self, peers: Mapping[str, Lines], references: Mapping[str, Sequence[Lines]]) -> dict[str, CorpusScore]:
        """Scores of all topics, averages and intervals, by measure.

        Args:
            peers: lines of the summary of each topic.
            references: lines of each reference of each topic.

        Raises:
            UserError: there is no topic, or one has no reference.
        """
        if not peers:
            raise UserError("there is no summary to score")
        missing = [topic for topic in peers if not references.get(topic)]
        if missing:
            raise UserError(f"topic {missing[0]!r} has no reference summary ({len(missing)} of {len(peers)} lack one)")
        scores = {topic: self.score(lines, references[topic]) for topic, lines in peers.items()}
        return {name: summarise_topics({topic: scores[topic][name] for topic in peers}) for name in self.measures}

    def jackknife(self, peer: Lines, references: Sequence[Lines]) -> dict[str, Score]:
        """Mean over all subsets that leave one reference out, so that people and systems are judged alike.

        A person's summary can only be compared with the other people's; a system's is then compared with as many.

        Args:
            peer: lines of the summary.
            references: at least two.
        """
        if len(references) < 2:
            raise UserError("jackknifing leaves one reference out: it needs at least two")
        scores = [self.score(peer, [*references[:i], *references[i + 1 :]]) for i in range(len(references))]
        return {
            name: Score(*(round(sum(getattr(score[name], part) for score in scores) / len(scores), 5)
                          for part in ("recall", "precision", "f")))
            for name in self.measures
        }  # fmt: skip

    def _reference(self, lines: Lines) -> "_Counted":
        key = tuple(lines) if not isinstance(lines, str) else (lines,)
        if key not in self._references:
            self._references[key] = self._count(lines)
        return self._references[key]

    def _count(self, lines: Lines) -> "_Counted":
        kept = limit_lines(encode_lines(lines), self.limit, self.unit)
        tokens = tokens_of(kept, self.stemmer)
        counts = {name: _COUNTERS[name](tokens) for name in self.measures if name != "ROUGE-L"}
        totals = {name: sum(count.values()) for name, count in counts.items()}
        sentences = []
        if "ROUGE-L" in self.measures:
            sentences = [tokens_of([line], self.stemmer) for line in kept]
            totals["ROUGE-L"] = len(tokens)
        return _Counted(counts, totals, sentences)

    def _measure(self, name: str, peer: "_Counted", references: Sequence["_Counted"]) -> Score:
        if name == "ROUGE-L":
            hits = sum(union_lcs_hits(peer.sentences, reference.sentences) for reference in references)
        else:
            hits = sum(clipped_hits(peer.counts[name], reference.counts[name]) for reference in references)
        wanted = sum(reference.totals[name] for reference in references)
        given = len(references) * peer.totals[name]
        recall = _rounded(hits / wanted) if wanted else 0.0
        precision = _rounded(hits / given) if given else 0.0
        below = (1 - self.alpha) * precision + self.alpha * recall
        return Score(recall, precision, _rounded(precision * recall / below) if below else 0.0)


_NAMES = ", ".join([*_COUNTERS, "ROUGE-L"])


@dataclass(frozen=True)
class _Counted:
    counts: dict[str, Counter]
    totals: dict[str, int]
    sentences: list[list[str]]


def _rounded(value: float) -> float:
    """As ``sprintf "%7.5f"`` rounds: the exact binary value, halves to even."""
    return float(f"{value:.5f}")


def summarise_topics(topics: Mapping[str, Score]) -> CorpusScore:
    """Average and interval of one measure, from the scores of its topics by id."""
    ids = sorted(topics)  # as strings: 1, 10, 11, ..., 2
    parts = {
        part: bootstrap_interval([getattr(topics[topic], part) for topic in ids])
        for part in ("recall", "precision", "f")
    }
    return CorpusScore(topics=dict(topics), **parts)


def rouge_score(peer: Lines, references: Sequence[Lines], *, limit: int = 250) -> dict[str, Score]:
    """ROUGE-1, -2 and -SU4 of one summary with DUC's settings; see ``Rouge`` for others.

    Args:
        peer: lines of the summary.
        references: lines of each reference.
        limit: words that count; 0 for all.

    Example:
        >>> scores = rouge_score(["the cat sat"], [["a cat was sitting"]], limit=0)  # doctest: +SKIP
    """
    return Rouge(limit=limit).score(peer, references)
