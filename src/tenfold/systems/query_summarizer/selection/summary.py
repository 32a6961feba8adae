"""``Summary``: chosen sentences, each with its document, its place there, its score and what the query did to it."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.selection.select import Blocking, select
from tenfold.systems.query_summarizer.text.sentences import Document


@dataclass(frozen=True)
class Quote:
    """A sentence of a summary.

    Attributes:
        text: verbatim.
        document: id of its document.
        start: offset of its first character in the document.
        end: offset behind its last.
        score: of the model; higher is better.
        rank: 1 for the best sentence.
        without_query: score with the query masked, where it was asked for; the difference is the query's influence.
    """

    text: str
    document: str
    start: int
    end: int
    score: float
    rank: int
    without_query: float | None = None


@dataclass(frozen=True)
class Summary:
    """An answer to a query made of sentences of documents.

    Attributes:
        query: what was asked.
        quotes: the sentences, in the order in which they are read.
        scorer: what scored them: a trained model, or ``tfidf`` where there was none.
    """

    query: str
    quotes: tuple[Quote, ...]
    scorer: str

    @property
    def lines(self) -> list[str]:
        """One sentence a line, white space collapsed, as ROUGE reads them."""
        return [" ".join(quote.text.split()) for quote in self.quotes]

    @property
    def text(self) -> str:
        """The summary as one text."""
        return " ".join(self.lines)

    def to_json(self) -> str:
        """One JSON line."""
        values = asdict(self)
        if all(quote.without_query is None for quote in self.quotes):
            for quote in values["quotes"]:
                del quote["without_query"]
        return json.dumps(values, ensure_ascii=False)


def make_summary(
    query: str,
    documents: Sequence[Document],
    scores: ArrayLike,
    *,
    scorer: str,
    words: int | None = 250,
    threshold: float | None = None,
    block: Blocking = "trigram",
    order: Literal["score", "document"] = "score",
    hard_limit: bool = False,
    without_query: ArrayLike | None = None,
    min_words: int = 5,
    questions: bool = False,
) -> Summary:
    """Choose sentences and note where they stand.

    Args:
        query: what was asked.
        documents: the sources.
        scores: ``(n,)`` of all their sentences, one document after the other; each document's prior is added.
        scorer: what scored them.
        words: see ``select``.
        threshold: see there.
        block: see there.
        order: ``score`` (best first) or ``document`` (as they stand in the sources).
        hard_limit: see ``select``.
        without_query: ``(n,)`` scores with the query masked.
        min_words: see ``select``.
        questions: see there.
    """
    if order not in ("score", "document"):
        raise UserError(f"order is score or document; got {order!r}")
    places = [(document, sentence) for document in documents for sentence in document.sentences]
    if not places:
        raise UserError("the documents hold no sentence: there is nothing to summarise")
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(places),):
        raise UserError(f"every sentence needs one score; got {values.shape} scores for {len(places)} sentences")
    values = values + np.array([document.prior for document, _ in places])
    chosen = select(
        values,
        [sentence.text for _, sentence in places],
        words=words,
        threshold=threshold,
        block=block,
        hard_limit=hard_limit,
        min_words=min_words,
        questions=questions,
    )
    ranks = {i: rank for rank, i in enumerate(chosen, 1)}
    masked = None if without_query is None else np.asarray(without_query, dtype=np.float64)
    quotes = tuple(
        Quote(
            text=places[i][1].text,
            document=places[i][0].id,
            start=places[i][1].start,
            end=places[i][1].end,
            score=round(float(values[i]), 6),
            rank=ranks[i],
            without_query=None if masked is None else round(float(masked[i]), 6),
        )
        for i in (chosen if order == "score" else sorted(chosen))
    )
    return Summary(query, quotes, scorer)


def marked_html(documents: Sequence[Document], summary: Summary, around: int | None = None) -> str:
    """The documents with the chosen sentences marked in place, as a fragment of HTML; all text is escaped.

    Behind each mark stand its rank and, where it is known, the query's influence on its score.

    Args:
        documents: the sources.
        summary: what was chosen from them.
        around: characters of context on either side of a mark; ``None`` for the whole documents.
    """
    parts = []
    for document in documents:
        marks = sorted((q for q in summary.quotes if q.document == document.id), key=lambda quote: quote.start)
        if around is not None and not marks:
            continue
        pieces, place = [f"<h4>{html.escape(document.id)}</h4><p>"], 0
        for quote in marks:
            pieces.append(_context(document.text, place, quote.start, around))
            said = f"{quote.rank}"
            if quote.without_query is not None:
                said += f" · query {quote.score - quote.without_query:+.2f}"
            title = f"rank {quote.rank}, score {quote.score:.3f}"
            pieces.append(f'<mark title="{title}">{html.escape(quote.text)}</mark><sup>{said}</sup>')
            place = quote.end
        pieces.append(_context(document.text, place, len(document.text), around))
        parts.append("".join(pieces) + "</p>")
    return "\n".join(parts)


def _context(text: str, start: int, end: int, around: int | None) -> str:
    piece = text[start:end]
    if around is None or len(piece) <= 2 * around:
        return html.escape(piece)
    before = piece[:around] if start else ""
    after = piece[-around:] if end < len(text) else ""
    return html.escape(before) + " [...] " + html.escape(after)
