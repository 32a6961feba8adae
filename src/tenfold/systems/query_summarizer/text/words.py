"""Words for counting: lower case, stop words left out, Porter stems; TF-IDF of sentences."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from tenfold.systems.query_summarizer.rouge.stemming import Stemmer

_STOP = """
    a about above after again against all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each few for from further had has have having he her here
    hers him his how i if in into is it its itself just me more most my no nor not now of off on once only or other
    our ours out over own said same say says she should so some such than that the their theirs them then there
    these they this those through to too under until up upon us very was we were what when where which while who
    whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP.split())
_WORD = re.compile(r"[^\W_]+")  # letters and digits of every script
_stem = Stemmer({})


def content_words(text: str) -> list[str]:
    """Stems of the words that carry meaning."""
    return [_stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def all_words(text: str) -> list[str]:
    """Stems of all words."""
    return [_stem(word) for word in _WORD.findall(text.lower())]


def tfidf_rows(texts: Sequence[str], extra: Sequence[str] = ()) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """TF-IDF vectors of length 1 of texts, and of further texts by the same weights.

    ``idf = log((1 + n) / (1 + df)) + 1`` over ``texts``; words that only ``extra`` has do not count.

    Args:
        texts: such as the sentences of all documents.
        extra: such as the query.

    Returns:
        ``(n, words)`` and ``(len(extra), words)``.
    """
    bags = [Counter(content_words(text)) for text in texts]
    vocabulary = {word: number for number, word in enumerate(sorted({word for bag in bags for word in bag}))}
    frequency = Counter(word for bag in bags for word in bag)
    idf = np.array([np.log((1 + len(bags)) / (1 + frequency[word])) + 1 for word in vocabulary])
    known = [
        Counter({word: n for word, n in Counter(content_words(text)).items() if word in vocabulary}) for text in extra
    ]
    return _rows(bags, vocabulary, idf), _rows(known, vocabulary, idf)


def _rows(bags: Sequence[Counter], vocabulary: dict[str, int], idf: np.ndarray) -> sparse.csr_matrix:
    lengths = [len(bag) for bag in bags]
    columns = np.array([vocabulary[word] for bag in bags for word in bag], dtype=np.int64)
    counts = np.array([count for bag in bags for count in bag.values()], dtype=np.float64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = counts * idf[columns] if len(columns) else counts
    rows = np.repeat(np.arange(len(bags)), lengths)
    norms = np.sqrt(np.bincount(rows, values**2, minlength=len(bags)))
    values = values / np.where(norms == 0, 1, norms)[rows] if len(columns) else values
    return sparse.csr_matrix((values, columns, starts), shape=(len(bags), max(len(vocabulary), 1)))
