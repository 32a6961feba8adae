"""N-Triples by the grammar of the W3C (https://www.w3.org/TR/n-triples/): triples between resources, and labels."""

import re
from dataclasses import dataclass, field

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.columns import Triple
from tenfold.systems.graph_fusion.graph.tables import Place, read_text

_UCHAR = r"\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}"
_IRI = rf"<((?:[^\x00-\x20<>\"{{}}|^`\\]|{_UCHAR})*)>"
_BLANK = r"(_:[\w:](?:[\w:.\-\u00b7]*[\w:\-\u00b7])?)"
_STRING = rf'"((?:[^"\\\n\r]|\\[tbnrf"\'\\]|{_UCHAR})*)"'
_TAG = r"@([a-zA-Z]+(?:-[a-zA-Z0-9]+)*)"
_LITERAL = rf"{_STRING}(?:\^\^{_IRI}|{_TAG})?"
_STATEMENT = re.compile(
    rf"[ \t]*(?:{_IRI}|{_BLANK})[ \t]*{_IRI}[ \t]*(?:{_IRI}|{_BLANK}|{_LITERAL})[ \t]*\.[ \t]*(?:#.*)?"
)
_LABELS = ("http://www.w3.org/2000/01/rdf-schema#label", "http://www.w3.org/2004/02/skos/core#prefLabel")
_ESCAPES = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}


@dataclass
class NTriples:
    """What a file says.

    Attributes:
        triples: between resources.
        labels: text by resource: of the wanted language where there is one, else without language, else of another.
        literals: number of literals that are no labels.
        other_language: number of resources whose label is of another language.
        further: number of labels that gave way to the one chosen.
    """

    triples: list[Triple] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    literals: int = 0
    other_language: int = 0
    further: int = 0

    def notes(self, language: str) -> list[str]:
        """What a reader must know: what was left out, with numbers."""
        made = []
        if self.literals:
            made.append(f"{self.literals:,} literals that are no labels were left out.")
        if self.other_language:
            made.append(
                f"{self.other_language:,} resources have no label in {language!r}; one of another language is used."
            )
        if self.further:
            made.append(f"{self.further:,} further labels, of other languages or second ones, were left out.")
        return made


def read_n_triples(path: Place, language: str = "en") -> NTriples:
    """Read a file of N-Triples.

    Args:
        path: the file.
        language: of labels, such as ``en``, which ``en-GB`` also is.

    Raises:
        UserError: a line is not N-Triples.
    """
    found = NTriples()
    chosen: dict[str, int] = {}  # how well the label of a resource fits; the first of the best stays
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path)), start=1):
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        match = _STATEMENT.fullmatch(line)
        if match is None:
            raise UserError(f"{path} line {number} is not N-Triples: it must be <subject> <predicate> <object> .")
        iri, blank, predicate, object_iri, object_blank, string, _, tag = match.groups()
        subject = unescape(iri) if iri is not None else blank
        predicate = unescape(predicate)
        if string is None:
            found.triples.append((subject, predicate, unescape(object_iri) if object_iri is not None else object_blank))
        elif predicate not in _LABELS:
            found.literals += 1
        else:
            fit = _fit(tag, language)
            found.further += subject in chosen
            if fit > chosen.get(subject, 0):
                chosen[subject] = fit
                found.labels[subject] = unescape(string)
    found.other_language = sum(fit == 1 for fit in chosen.values())
    return found


def _fit(tag: str | None, language: str) -> int:
    """3: the wanted language; 2: no language; 1: another one. Tags do not tell cases apart."""
    if tag is None:
        return 2
    return 3 if f"{tag}-".lower().startswith(f"{language}-".lower()) else 1


def unescape(text: str) -> str:
    """The text that escapes stand for.

    Raises:
        UserError: an escape names no character.
    """
    if "\\" not in text:
        return text

    def plain(found: re.Match[str]) -> str:
        code = found[1]
        if code[0] not in "uU":
            return _ESCAPES[code]
        number = int(code[1:], 16)
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            raise UserError(f"the escape \\{code} names no character")
        return chr(number)

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", plain, text)
