"""Which statements a page supports: thresholds, and what they let through.

Calibrated on 491 human judgements "does the cited page support the sentence" (github.com/danieldeutsch/wikicite,
``data/mturk/quality/gold.jsonl``, articles on living people, 58.7 % positive): content-word recall of at least 0.5 and
bigram recall of at least 0.1, with pages of 50 to 2,000 words, keep 48 % with precision 0.869 and recall 0.712. The
paper's own thresholds could not be read.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.systems.query_summarizer.labels.oracle import budgeted_oracle
from tenfold.systems.query_summarizer.rouge.counting import clipped_hits, ngrams
from tenfold.systems.query_summarizer.text.words import STOP_WORDS, all_words, content_words

_LATIN = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Filters:
    """Thresholds of the builder.

    Attributes:
        content_recall: least share of the statement's content words that the page has.
        bigram_recall: least share of its bigrams.
        statement_words: least and most words of a statement.
        page_words: least and most words of a page.
        page_sentences: least sentences of a page.
        oracle_f: least ROUGE-2 F of the labelled sentences with the statement.
        copy_recall: bigram recall in one run of sentences above which a mirror of the article is suspected.
        copied_sentences: sentences of the article that a mirror has verbatim, at least.
        english: least share of stop words among a page's words, by which English is told.
        per_section: examples of one section at most.
        per_url: examples of one page at most.
    """

    content_recall: float = 0.5
    bigram_recall: float = 0.1
    statement_words: tuple[int, int] = (8, 100)
    page_words: tuple[int, int] = (50, 2000)
    page_sentences: int = 5
    oracle_f: float = 0.05
    copy_recall: float = 0.95
    copied_sentences: int = 3
    english: float = 0.15
    per_section: int = 5
    per_url: int = 50


@dataclass(frozen=True)
class Support:
    """How far a page supports a statement: shares in [0, 1]."""

    unigram: float
    content: float
    bigram: float


def support_of(statement: str, page: str) -> Support:
    """Recall of the statement's stems in a page: all words, content words, bigrams."""
    own, theirs = all_words(statement), all_words(page)
    shares = []
    for grams, others in (
        (ngrams(own, 1), ngrams(theirs, 1)),
        (Counter(content_words(statement)), Counter(content_words(page))),
        (ngrams(own, 2), ngrams(theirs, 2)),
    ):
        total = sum(grams.values())
        shares.append(clipped_hits(grams, others) / total if total else 0.0)
    return Support(*shares)


def is_english(text: str, least: float) -> bool:
    """Whether a text reads as English: enough of its words are English stop words, most of its letters Latin."""
    words = _LATIN.findall(text.lower())
    letters = sum(character.isalpha() for character in text)
    if not words or sum(map(len, words)) < 0.8 * letters:
        return False
    return sum(word in STOP_WORDS for word in words) / len(words) >= least


def reason_to_drop(
    statement: str, sentences: Sequence[str], article: Sequence[str], title: str, filters: Filters
) -> tuple[str, Support | None]:
    """Why an example is not kept, and its support; the reason is empty where it is kept.

    Args:
        statement: the summary.
        sentences: of the document.
        article: sentences of the article, for mirrors.
        title: of the article.
        filters: thresholds.
    """
    words = len(statement.split())
    if not filters.statement_words[0] <= words <= filters.statement_words[1]:
        return "statement length", None
    if statement.strip(" .").lower() == title.lower():
        return "statement is the title", None
    page = " ".join(sentences)
    if not filters.page_words[0] <= len(page.split()) <= filters.page_words[1]:
        return "page length", None
    if len(sentences) < filters.page_sentences:
        return "page sentences", None
    if not is_english(page, filters.english):
        return "language", None
    support = support_of(statement, page)
    if support.content < filters.content_recall:
        return "content recall", support
    if support.bigram < filters.bigram_recall:
        return "bigram recall", support
    if support.bigram > filters.copy_recall:
        flat = " ".join(page.split())
        if sum(" ".join(own.split()) in flat for own in article if len(own.split()) > 5) >= filters.copied_sentences:
            return "mirror of the article", support
    if oracle_f(statement, sentences) < filters.oracle_f:
        return "oracle score", support
    return "", support


def oracle_f(statement: str, sentences: Sequence[str]) -> float:
    """ROUGE-2 F of the greedy oracle's sentences with the statement."""
    chosen = budgeted_oracle(sentences, [[statement]], len(statement.split()))
    own, wanted = (ngrams(all_words(text), 2) for text in (" ".join(sentences[i] for i in chosen), statement))
    size = sum(own.values()) + sum(wanted.values())
    return 2 * clipped_hits(own, wanted) / size if size else 0.0
