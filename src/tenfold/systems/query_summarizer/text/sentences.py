"""Sentences with their places in the source, found by rules: no model, no download.

A summary quotes verbatim, so a sentence is a slice of its document: ``document.text[start:end]``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_ABBREVIATED = """
    mr mrs ms dr prof sr jr st gen col lt sgt capt cmdr adm rep sen gov pres hon rev fr vs etc inc ltd co corp bros
    dept univ assn fig eq no vol pp p ed eds al approx est jan feb mar apr jun jul aug sep sept oct nov dec mon tue
    wed thu fri sat sun u.s u.k u.n e.g i.e cf viz ca a.m p.m ph.d b.a m.a d.c n.y mt ft ave blvd rd
"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_END = re.compile(r"""[.!?]+["'\u201d\u2019)\]]*(?=\s)|\n\s*\n""")
_LAST_WORD = re.compile(r"""([^\s(\["'\u201c\u2018]+)$""")


@dataclass(frozen=True)
class Sentence:
    """A slice of a document.

    Attributes:
        text: ``document.text[start:end]``, verbatim; of transcripts without marks such as ``{vocalsound}``.
        start: offset of its first character.
        end: offset behind its last.
    """

    text: str
    start: int
    end: int

    @property
    def words(self) -> list[str]:
        """White-space tokens, which budgets count."""
        return self.text.split()


@dataclass(frozen=True)
class Document:
    """A source with its sentences.

    Attributes:
        id: name or number by which it is cited.
        text: as it was read.
        sentences: in order; slices of ``text``.
        prior: added to the score of its sentences, for example for recent documents.
    """

    id: str
    text: str
    sentences: tuple[Sentence, ...]
    prior: float = 0.0


def split_sentences(text: str) -> list[Sentence]:
    """Sentences of a text, in order, each a slice of it.

    A sentence ends at ``.``, ``!`` or ``?`` (and closing quotes or brackets) before white space and something that can
    begin a sentence, but not after an abbreviation or an initial; and at an empty line.

    Args:
        text: any.
    """
    found, start = [], 0
    for match in _END.finditer(text):
        if match.end() > start and (match[0].isspace() or _ends(text, match.start(), match.end())):
            found.append((start, match.end()))
            start = match.end()
    found.append((start, len(text)))
    return [sentence for first, last in found if (sentence := slice_of(text, first, last))]


def slice_of(text: str, start: int, end: int) -> Sentence | None:
    """The slice without blanks at its ends; ``None`` where nothing is left."""
    piece = text[start:end]
    stripped = piece.strip()
    if not stripped:
        return None
    first = start + len(piece) - len(piece.lstrip())
    return Sentence(stripped, first, first + len(stripped))


def _ends(text: str, mark: int, behind: int) -> bool:
    following = text[behind : behind + 40].lstrip()
    if not following:
        return True
    if following[0].islower() or following[0] in ",;:)":
        return False
    if text[mark] != "." or text[mark : mark + 2] == "..":
        return True
    word = _LAST_WORD.search(text, max(0, mark - 30), mark)
    if word is None:
        return True
    last = word[1].lower()
    initial = len(last) == 1 and last.isalpha() and last != "i" and word[1].isupper()
    return not (last in _ABBREVIATIONS or initial or (last == "no" and following[0].isdigit()))


def document_of(text: str, id: str = "document", prior: float = 0.0) -> Document:
    """Split a text into a ``Document``."""
    return Document(id, text, tuple(split_sentences(text)), prior)


def document_of_sentences(sentences: Iterable[str], id: str = "document", separator: str = "\n") -> Document:
    """A ``Document`` of sentences that are known already; its text joins them by ``separator``."""
    kept, pieces, place = [], [], 0
    for text in sentences:
        stripped = text.strip()
        if stripped:
            kept.append(Sentence(stripped, place, place + len(stripped)))
            pieces.append(stripped)
            place += len(stripped) + len(separator)
    return Document(id, separator.join(pieces), tuple(kept))


def count_words(sentences: Sequence[Sentence]) -> int:
    """White-space tokens of several sentences."""
    return sum(len(sentence.words) for sentence in sentences)
