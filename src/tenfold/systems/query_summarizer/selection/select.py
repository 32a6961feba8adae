"""``select``: the best sentences that fit a budget and do not repeat each other.


for sentences in the order of their score (ties: order of the documents)
skip one that repeats what is chosen
take it; stop when at least ``words`` words are chosen
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.text.words import content_words

Blocking = Literal["trigram", "bigram-ratio", "cosine", "mmr", "none"]
BLOCKINGS = ("trigram", "bigram-ratio", "cosine", "mmr", "none")
_MMR_LAMBDA = 0.7
_COSINE = 0.6
_NEW_BIGRAMS = 0.5


def select(
    scores: ArrayLike,
    texts: Sequence[str],
    *,
    words: int | None = 250,
    threshold: float | None = None,
    block: Blocking = "trigram",
    hard_limit: bool = False,
    min_words: int = 5,
    questions: bool = False,
) -> list[int]:
    """Numbers of the chosen sentences, best first.

    Args:
        scores: ``(n,)`` one per sentence.
        texts: the sentences, all documents one after the other.
        words: budget in white-space words; sentences are added until it is reached, and never cut. ``None`` for no
            budget, with ``threshold``.
        threshold: sentences below it are never chosen, so that there may be none.
        block: how a repetition is told: ``trigram`` (shares three lower-cased words in a row with the chosen ones),
            ``bigram-ratio`` (less than half of its pairs of words are new), ``cosine`` (TF cosine of stems of at least
            0.6 with a chosen one), ``mmr`` (score against similarity, weight 0.7), ``none``.
        hard_limit: never exceed the budget: a sentence that does not fit is skipped, shorter ones are tried.
        min_words: shorter sentences are not chosen.
        questions: whether sentences that end in a question mark may be chosen.

    Raises:
        UserError: scores and sentences do not fit, a setting makes no sense, or no sentence fits the hard limit.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(texts),):
        raise UserError(f"every sentence needs one score; got {values.shape} scores for {len(texts)} sentences")
    if not np.isfinite(values).all():
        raise UserError("a score is not a finite number")
    if block not in BLOCKINGS:
        raise UserError(f"block is one of {', '.join(BLOCKINGS)}; got {block!r}")
    if words is None and threshold is None:
        raise UserError("name a budget of words, or a threshold")
    if words is not None and words < 1:
        raise UserError(f"a budget has at least one word; got {words}")
    lengths = [len(text.split()) for text in texts]
    allowed = [
        i
        for i, text in enumerate(texts)
        if lengths[i] >= min_words
        and (questions or not text.rstrip("\"'\u201d\u2019)").endswith("?"))
        and (threshold is None or values[i] >= threshold)
    ]
    if not allowed and threshold is None:  # better a short sentence than none
        allowed = list(range(len(texts)))
    if hard_limit and words is not None and allowed and min(lengths[i] for i in allowed) > words:
        raise UserError(
            f"no sentence fits {words} words (the shortest has {min(lengths[i] for i in allowed)}): raise the budget"
        )
    order = sorted(allowed, key=lambda i: -values[i])  # stable: ties in the order of the documents
    if block == "mmr":
        return _mmr(values, texts, lengths, order, words, hard_limit)
    repeats = _BLOCKS[block]()
    chosen: list[int] = []
    used = 0
    for i in order:
        if words is not None and used >= words:
            break
        if hard_limit and words is not None and used + lengths[i] > words:
            continue
        if repeats(texts[i]):
            chosen.append(i)
            used += lengths[i]
    return chosen


def _trigram() -> Callable[[str], bool]:
    seen: set[tuple[str, ...]] = set()

    def accept(text: str) -> bool:
        words = text.lower().split()
        own = set(zip(words, words[1:], words[2:], strict=False))
        if own & seen:
            return False
        seen.update(own)
        return True

    return accept


def _bigram_ratio() -> Callable[[str], bool]:
    seen: set[tuple[str, str]] = set()

    def accept(text: str) -> bool:
        words = text.lower().split()
        own = set(itertools.pairwise(words))
        if own and len(own - seen) / len(own) < _NEW_BIGRAMS:
            return False
        seen.update(own)
        return True

    return accept


def _vector(text: str) -> dict[str, float]:
    counts: dict[str, float] = {}
    for word in content_words(text):
        counts[word] = counts.get(word, 0.0) + 1.0
    norm = sum(value * value for value in counts.values()) ** 0.5
    return {word: value / norm for word, value in counts.items()}


def _similarity(first: dict[str, float], second: dict[str, float]) -> float:
    return sum(value * second[word] for word, value in first.items() if word in second)


def _cosine() -> Callable[[str], bool]:
    chosen: list[dict[str, float]] = []

    def accept(text: str) -> bool:
        own = _vector(text)
        if any(_similarity(own, other) >= _COSINE for other in chosen):
            return False
        chosen.append(own)
        return True

    return accept


def _none() -> Callable[[str], bool]:
    return lambda text: True


_BLOCKS = {"trigram": _trigram, "bigram-ratio": _bigram_ratio, "cosine": _cosine, "none": _none}


def _mmr(
    scores: np.ndarray, texts: Sequence[str], lengths: Sequence[int], order: list[int], words: int | None, hard: bool
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998), scores brought to [0, 1]."""
    if not order:
        return []
    low, high = min(scores[i] for i in order), max(scores[i] for i in order)
    relevance = {i: (scores[i] - low) / ((high - low) or 1.0) for i in order}
    vectors = {i: _vector(texts[i]) for i in order}
    nearest = dict.fromkeys(order, 0.0)
    chosen: list[int] = []
    used, left = 0, list(order)
    while left and (words is None or used < words):
        best = max(left, key=lambda i: _MMR_LAMBDA * relevance[i] - (1 - _MMR_LAMBDA) * nearest[i])
        left.remove(best)
        if hard and words is not None and used + lengths[best] > words:
            continue
        chosen.append(best)
        used += lengths[best]
        for i in left:
            nearest[i] = max(nearest[i], _similarity(vectors[i], vectors[best]))
    return chosen
