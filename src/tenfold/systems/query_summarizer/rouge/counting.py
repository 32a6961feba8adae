"""From lines to counts, as ROUGE-1.5.5 does it: the limit, the tokens, n-grams, skip-bigrams.

Everything works on the bytes of UTF-8, of which only A-Z are lowered: "Café" gives the token "caf".
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.rouge.stemming import Stemmer

SKIP = 4
"""Words that a skip-bigram of ROUGE-SU4 may leave out."""

_BLANKS = re.compile(rb"\s+")
_TOKEN = re.compile(rb"[a-z0-9]+")


def encode_lines(lines: Sequence[str]) -> list[bytes]:
    """Lines as bytes, empty ones left out.

    Raises:
        UserError: a string came where a list of lines belongs.
    """
    if isinstance(lines, str | bytes):
        raise UserError("a summary is a list of lines or sentences, not one string: pass text.splitlines()")
    return [line.encode("utf-8", "surrogatepass") for line in lines if line != ""]


def limit_lines(lines: Sequence[bytes], limit: int, unit: Literal["words", "bytes"] = "words") -> list[bytes]:
    r"""The first ``limit`` words (``-l``) or bytes (``-b``) of a summary.

    Words are what Perl's ``split(/\s+/)`` gives: a leading blank makes an empty first word, which counts; trailing
    ones vanish.

    Args:
        lines: of the summary.
        limit: 0 for no limit.
        unit: what is counted.
    """
    if not limit:
        return list(lines)
    kept, used = [], 0
    for line in lines:
        words = _perl_split(line) if unit == "words" else [line[i : i + 1] for i in range(len(line))]
        if used + len(words) < limit:
            kept.append(line)
            used += len(words)
        else:
            kept.append((b" " if unit == "words" else b"").join(words[: limit - used]))
            break
    return kept


def _perl_split(line: bytes) -> list[bytes]:
    words = _BLANKS.split(line)
    while words and not words[-1]:
        words.pop()
    return words


def tokens_of(lines: Sequence[bytes], stemmer: Stemmer | None) -> list[str]:
    """Tokens of a whole summary, in order; runs of letters and digits, stemmed where a stemmer is given."""
    words = [token.decode("ascii") for token in _TOKEN.findall(b" ".join(lines).lower())]
    return words if stemmer is None else [stemmer(word) for word in words]


def ngrams(tokens: Sequence[str], n: int) -> Counter:
    """Counts of n-grams over the whole summary, across its lines."""
    if n == 1:
        return Counter(tokens)
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def skip_bigrams(tokens: Sequence[str], skip: int = SKIP, unigrams: bool = True) -> Counter:
    """Counts of pairs with at most ``skip`` words between them, and of single words (the U of SU).

    The last token gives no single word, as in the script: it visits every token as the first of a pair.

    Args:
        tokens: of the summary.
        skip: words left out at most.
        unigrams: whether single words count, too.
    """
    counts: Counter = Counter(tokens[:-1]) if unigrams else Counter()
    for distance in range(1, skip + 2):
        counts.update(zip(tokens, tokens[distance:], strict=False))
    return counts


def clipped_hits(peer: Counter, reference: Counter) -> int:
    """Units in common, each at most as often as the rarer side has it."""
    small, large = (peer, reference) if len(peer) < len(reference) else (reference, peer)
    get = large.get
    return sum(min(count, other) for unit, count in small.items() if (other := get(unit)))
