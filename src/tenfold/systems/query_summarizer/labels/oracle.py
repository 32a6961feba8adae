"""Greedy oracles: which sentences would an extractor have to take to come close to the references?

Two forms. ``single_reference_oracle`` is PreSumm's: sets of 1- and 2-grams, sentences added while ROUGE-1 F plus
ROUGE-2 F grow. ``budgeted_oracle`` counts multisets, takes several references, and fills a budget of words by gain per
length. ``soft_labels`` gives each sentence its own similarity instead (MARGE: Xu and Lapata, ACL 2021).
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tenfold.systems.query_summarizer.rouge.counting import clipped_hits, ngrams
from tenfold.systems.query_summarizer.text.words import all_words

_NOT_WORDS = re.compile(r"[^a-zA-Z0-9 ]")
_LENGTH_POWER, _SHORTEST, _BIGRAM_WEIGHT = 0.7, 5, 3.0
_SOFT_UNIGRAMS = 0.15


def single_reference_oracle(sentences: Sequence[str], reference: Sequence[str], most: int = 3) -> list[int]:
    """Sentences chosen one by one while ROUGE-1 F + ROUGE-2 F of their union grows, in the order of the document.

    Args:
        sentences: of the document.
        reference: sentences of the summary.
        most: sentences at most.

    Returns:
        Their numbers, ascending (the official code returns them unsorted where it stops early).
    """
    wanted = [_sets([word for line in reference for word in _clean(line)], n) for n in (1, 2)]
    own = [[_sets(_clean(sentence), n) for n in (1, 2)] for sentence in sentences]
    chosen: list[int] = []
    covered: list[set] = [set(), set()]
    best = 0.0
    for _ in range(most):
        gains = [
            (sum(_f(covered[n] | own[i][n], wanted[n]) for n in (0, 1)), -i)
            for i in range(len(sentences))
            if i not in chosen
        ]
        if not gains or max(gains)[0] <= best:
            break
        best, place = max(gains)
        chosen.append(-place)
        covered = [covered[n] | own[-place][n] for n in (0, 1)]
    return sorted(chosen)


def _clean(text: str) -> list[str]:
    return _NOT_WORDS.sub("", text.lower()).split()


def _sets(words: Sequence[str], n: int) -> set:
    return set(ngrams(words, n))


def _f(found: set, wanted: set) -> float:
    hits = len(found & wanted)
    precision = hits / len(found) if found else 0.0
    recall = hits / len(wanted) if wanted else 0.0
    return 2 * precision * recall / (precision + recall + 1e-8)


def budgeted_oracle(sentences: Sequence[str], references: Sequence[Sequence[str]], words: int = 250) -> list[int]:
    """Sentences that cover the references within a budget, in the order in which they are taken.

    What is still to be covered of an n-gram is the largest count in any reference. The gain of a sentence is
    ``sum_1 min(count, open)/N_1 + 3 sum_2 min(count, open)/N_2``, divided by ``max(5, words)^0.7``.

    Args:
        sentences: of all documents of a topic.
        references: sentences of each reference.
        words: budget; the sentence that reaches it is the last.
    """
    open_counts: list[Counter] = [Counter(), Counter()]
    for reference in references:
        tokens = all_words(" ".join(reference))
        for n, counts in enumerate(open_counts, 1):
            for gram, count in ngrams(tokens, n).items():
                counts[gram] = max(counts[gram], count)
    totals = [max(1, sum(counts.values())) for counts in open_counts]
    own = [[ngrams(tokens, n) for n in (1, 2)] for tokens in map(all_words, sentences)]
    lengths = [len(sentence.split()) for sentence in sentences]
    costs = [max(_SHORTEST, length) ** _LENGTH_POWER for length in lengths]

    def gain(i: int) -> float:
        first, second = (clipped_hits(own[i][n], open_counts[n]) / totals[n] for n in (0, 1))
        return (first + _BIGRAM_WEIGHT * second) / costs[i]

    # Gains only fall as more is covered, so a sentence's old gain bounds its new one: look again at the best only.
    bounds = np.array([gain(i) for i in range(len(sentences))])
    chosen: list[int] = []
    used = 0
    while used < words and len(bounds):
        while True:
            i = int(bounds.argmax())
            now = gain(i) if i not in chosen else -1.0
            if now == bounds[i]:
                break
            bounds[i] = now
        if bounds[i] <= 0:
            break
        chosen.append(i)
        used += lengths[i]
        for n in (0, 1):
            taken = own[i][n]
            left = {gram: count - taken[gram] for gram, count in open_counts[n].items() if count > taken[gram]}
            open_counts[n] = Counter(left)
        bounds[i] = -1.0
    return chosen


def hard_labels(sentences: Sequence[str], references: Sequence[Sequence[str]], words: int = 250) -> list[float]:
    """1 for the sentences of ``budgeted_oracle``, 0 for the others.

    Args:
        sentences: of all documents of a topic.
        references: sentences of each reference.
        words: budget; where the longest reference has fewer words, its length: beyond it every sentence that shares a
            word with a reference would count as one of the summary's.
    """
    longest = max((len(" ".join(reference).split()) for reference in references), default=0)
    chosen = set(budgeted_oracle(sentences, references, min(words, longest)))
    return [float(i in chosen) for i in range(len(sentences))]


def soft_labels(sentences: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-2 F + 0.15 ROUGE-1 F of each sentence with the references, in [0, 1.15] (MARGE's target).

    Args:
        sentences: of all documents of a topic.
        references: sentences of each reference.
    """
    wanted = [all_words(" ".join(reference)) for reference in references]
    labels = []
    for sentence in sentences:
        tokens = all_words(sentence)
        value = 0.0
        for n, weight in ((1, _SOFT_UNIGRAMS), (2, 1.0)):
            own = ngrams(tokens, n)
            scores = []
            for words in wanted:
                theirs = ngrams(words, n)
                hits, size = clipped_hits(own, theirs), sum(own.values()) + sum(theirs.values())
                scores.append(2 * hits / size if size else 0.0)
            value += weight * (sum(scores) / len(scores) if scores else 0.0)
        labels.append(value)
    return labels
