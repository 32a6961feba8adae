"""ROUGE-L at the level of summaries: for each reference sentence the union of its longest common subsequences."""

from collections import Counter
from collections.abc import Sequence


def union_lcs_hits(peer: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> int:
    """Tokens of the reference covered by the union LCS (Lin 2004, section 3.2), each token at most as often as both
    sides have it.

    Args:
        peer: tokens of each sentence.
        reference: the same of the reference.
    """
    left = Counter(token for sentence in peer for token in sentence)
    open_counts = Counter(token for sentence in reference for token in sentence)
    hits = 0
    for sentence in reference:
        covered = sorted(set().union(*(_lcs_places(sentence, other) for other in peer)))
        for place in covered:
            token = sentence[place]
            if left[token] > 0 and open_counts[token] > 0:
                left[token] -= 1
                open_counts[token] -= 1
                hits += 1
    return hits


def _lcs_places(reference: Sequence[str], peer: Sequence[str]) -> set[int]:
    """Places in ``reference`` of one longest common subsequence with ``peer``."""
    known = set(peer)
    shared = [place for place, token in enumerate(reference) if token in known]  # others are in no subsequence
    rows = [[0] * (len(peer) + 1)]
    for place in shared:
        token, before, row = reference[place], rows[-1], [0]
        for j, other in enumerate(peer):
            row.append(before[j] + 1 if token == other else max(before[j + 1], row[j]))
        rows.append(row)
    places, i, j = set(), len(shared), len(peer)
    while i and j:
        if reference[shared[i - 1]] == peer[j - 1]:
            places.add(shared[i - 1])
            i, j = i - 1, j - 1
        elif rows[i][j - 1] > rows[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places
