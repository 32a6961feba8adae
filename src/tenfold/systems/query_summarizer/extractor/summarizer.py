"""``QuerySummarizer``: an extractor and the way its scores become a summary; what users hold in their hands."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.extractor.baselines import TfIdfExtractor
from tenfold.systems.query_summarizer.selection.select import Blocking
from tenfold.systems.query_summarizer.selection.summary import Summary, make_summary
from tenfold.systems.query_summarizer.text.sentences import Document, document_of

LONGEST_SENTENCE = 1000
"""Words of a sentence at most; what has more is text without punctuation, such as a table."""


class Extractor(Protocol):
    """Anything that gives each sentence a score."""

    def score(self, query: str, documents: Sequence[Document], *, masked: bool = False) -> Tensor:
        """One score per sentence ``(n,)``, higher is better."""
        ...


class QuerySummarizer:
    """Answers a question with sentences of the given documents.

    Args:
        extractor: a trained extractor; TF-IDF, which needs no training, where ``None``.
        name: what summaries say that they were scored by.

    Example:
        >>> text = "It rained all day. Tom broke the window, Ann saw."
        >>> summary = QuerySummarizer().summarize("Who broke the window?", [text], words=6)
        >>> summary.quotes[0].text
        'Tom broke the window, Ann saw.'
    """

    def __init__(self, extractor: Extractor | None = None, name: str | None = None) -> None:
        self.extractor: Extractor = extractor if extractor is not None else TfIdfExtractor()
        self.name = name or ("tfidf" if extractor is None else type(extractor).__name__.lower())

    def score(self, query: str, documents: Sequence[Document | str]) -> list[float]:
        """One score per sentence of all documents."""
        return self.extractor.score(query, _documents(documents)).tolist()

    def unread_pieces(self, query: str) -> int:
        """Word pieces of a query that the extractor would not read, because it is too long."""
        count = getattr(self.extractor, "unread_pieces", None)
        return 0 if count is None else count(query)

    def summarize(
        self,
        query: str,
        documents: Sequence[Document | str],
        *,
        words: int | None = 250,
        threshold: float | None = None,
        block: Blocking = "trigram",
        order: Literal["score", "document"] = "score",
        hard_limit: bool = False,
        explain: bool = False,
        cut_query: bool = False,
    ) -> Summary:
        """The sentences that answer a query, each with its place in its document.

        Args:
            query: a question or topic.
            documents: texts, or ``Document`` with sentences of their own.
            words: budget in white-space words; whole sentences are added until it is reached. ``None`` with a
                threshold.
            threshold: least score of a sentence; there may then be none.
            block: how repetitions are told; see ``select``.
            order: ``score`` or ``document``.
            hard_limit: never exceed the budget.
            explain: score every sentence without the query, too.
            cut_query: cut a query that is longer than the model reads from the right, instead of refusing it.

        Raises:
            UserError: the query or a document is empty, the query is too long, a sentence has more than
                ``LONGEST_SENTENCE`` words, or a setting makes no sense.
        """
        if not query.strip():
            raise UserError("the query is empty: ask something")
        unread = self.unread_pieces(query)
        if unread and not cut_query:
            raise UserError(
                f"the query is {unread} word pieces longer than this extractor reads: ask in fewer words (or, from "
                "Python, cut_query=True)"
            )
        sources = _documents(documents)
        return make_summary(
            query,
            sources,
            self.extractor.score(query, sources).double().numpy(),
            scorer=self.name,
            words=words,
            threshold=threshold,
            block=block,
            order=order,
            hard_limit=hard_limit,
            without_query=self.extractor.score(query, sources, masked=True).double().numpy() if explain else None,
        )

    def __call__(self, query: str, documents: Sequence[Document | str], **settings: Any) -> Summary:
        """The same as ``summarize``."""
        return self.summarize(query, documents, **settings)

    def process(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        threshold: float = 0.5,
        **ignored: Any,
    ) -> dict[str, Any]:
        """Prune retrieved passages to the sentences that matter, with the call of Provence (Chirkova et al., 2025).

        Args:
            question: one, or several.
            context: a passage, passages of one question, or passages of each question.
            threshold: least probability of a kept sentence, in [0, 1].
            ignored: other arguments of Provence's call; refused.

        Returns:
            ``pruned_context`` and ``reranking_score`` in the shape of ``context``, and ``compression_rate`` (share of
            characters left out, in percent).
        """
        if ignored:
            raise UserError(f"process takes no argument {next(iter(ignored))!r}")
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold is a probability in [0, 1]; got {threshold}")
        single = isinstance(question, str)
        questions = [question] if isinstance(question, str) else list(question)
        if isinstance(context, str):
            nested: list[list[str]] = [[context]]
        elif context and isinstance(context[0], str):
            flat_context = [str(one) for one in context]
            nested = [flat_context] if single else [[one] for one in flat_context]
        else:
            nested = [list(group) for group in context]
        if len(nested) != len(questions):
            raise UserError(f"{len(questions)} questions need as many lists of passages; got {len(nested)}")
        pruned, scores, kept, all_characters = [], [], 0, 0
        for asked, passages in zip(questions, nested, strict=True):
            texts, best = [], []
            for passage in passages:
                document = document_of(passage)
                all_characters += len(passage)
                if not document.sentences:
                    texts.append("")
                    best.append(0.0)
                    continue
                shares = self._probabilities(asked, [document])
                chosen = [s.text for s, share in zip(document.sentences, shares, strict=True) if share >= threshold]
                texts.append(" ".join(chosen))
                best.append(float(shares.max()))
                kept += len(texts[-1])
            pruned.append(texts)
            scores.append(best)
        rate = 100.0 * (1 - kept / all_characters) if all_characters else 0.0
        if isinstance(context, str):
            return {"pruned_context": pruned[0][0], "reranking_score": scores[0][0], "compression_rate": rate}
        if single or (context and isinstance(context[0], str)):
            flat = [text for group in pruned for text in group], [value for group in scores for value in group]
            return {"pruned_context": flat[0], "reranking_score": flat[1], "compression_rate": rate}
        return {"pruned_context": pruned, "reranking_score": scores, "compression_rate": rate}

    def _probabilities(self, query: str, documents: Sequence[Document]) -> Tensor:
        scores = self.extractor.score(query, documents)
        return scores if isinstance(self.extractor, TfIdfExtractor) else torch.sigmoid(scores)


def _documents(documents: Sequence[Document | str]) -> list[Document]:
    if isinstance(documents, str):
        raise UserError("documents are a list; one document goes into a list")
    made = [
        document if isinstance(document, Document) else document_of(document, f"document {number}")
        for number, document in enumerate(documents, 1)
    ]
    if not made:
        raise UserError("there is no document to summarise")
    empty = [document.id for document in made if not document.sentences]
    if empty:
        raise UserError(f"{empty[0]} is empty: there is nothing to summarise")
    seen: Counter[str] = Counter()
    for number, document in enumerate(made):  # a citation must not mean either of two
        seen[document.id] += 1
        if seen[document.id] > 1:
            made[number] = replace(document, id=f"{document.id} ({seen[document.id]})")
    for document in made:
        longest = max(document.sentences, key=lambda sentence: sentence.end - sentence.start)
        if len(longest.words) > LONGEST_SENTENCE:
            raise UserError(
                f"{document.id} has a sentence of {len(longest.words):,} words at {longest.start}: it cannot be cited; "
                "set full stops or empty lines, or give the sentences as JSONL"
            )
    return made
