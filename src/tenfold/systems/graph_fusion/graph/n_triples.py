"""N-Triples (https://www.w3.org/TR/n-triples/): triples between resources, and labels."""

import re

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.tables import Place, Triple, read_lines

_N_TRIPLE = re.compile(r"\s*(<[^>]*>|_:\S+)\s+<([^>]*)>\s+(<[^>]*>|_:\S+|\"(?:[^\"\\]|\\.)*\"\S*)\s*\.\s*(?:#.*)?$")
_LABELS = {"http://www.w3.org/2000/01/rdf-schema#label", "http://www.w3.org/2004/02/skos/core#prefLabel"}


def read_n_triples(path: Place) -> tuple[list[Triple], dict[str, str], int]:
    """Triples between resources of an N-Triples file, the labels it gives, and how many other literals it holds.

    Raises:
        UserError: a line is not N-Triples.
    """
    triples: list[Triple] = []
    labels: dict[str, str] = {}
    literals = 0
    for number, line in enumerate(read_lines(path), start=1):
        if line.lstrip().startswith("#"):
            continue
        found = _N_TRIPLE.match(line)
        if found is None:
            raise UserError(f"{path} line {number} is not N-Triples: it must be <subject> <predicate> <object> .")
        subject, predicate, value = found[1].strip("<>"), found[2], found[3]
        if not value.startswith('"'):
            triples.append((subject, predicate, value.strip("<>")))
        elif predicate in _LABELS:
            text = value[1 : value.rindex('"')]
            labels.setdefault(subject, _unescape(text))
        else:
            literals += 1
    return triples, labels, literals


def _unescape(text: str) -> str:
    plain = {"t": "\t", "n": "\n", "r": "\r", '"': '"', "\\": "\\"}

    def replace(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if code[0] in "uU" else plain.get(code, code)

    return re.sub(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", replace, text)
