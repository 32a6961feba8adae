"""WordPiece, as BERT reads text: blanks, punctuation, then the longest known piece again and again.

A published ``vocab.txt`` gives the published tokens (tested against transformers). A vocabulary of one's own is made
from texts by ``make_vocabulary``.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tenfold.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONGEST_WORD = 100


class WordPiece:
    """A tokenizer: text to numbers, without the special tokens around them.

    Args:
        vocabulary: pieces in the order of their numbers; ``##`` marks one that continues a word.
        lowercase: lower case and accents removed, as "uncased" models want.

    Attributes:
        pad: number of ``[PAD]``.
        cls: number of ``[CLS]``.
        sep: number of ``[SEP]``.
        mask: number of ``[MASK]``.

    Raises:
        UserError: a special token is missing.
    """

    def __init__(self, vocabulary: Sequence[str], lowercase: bool = True) -> None:
        self.vocabulary = list(vocabulary)
        self.lowercase = lowercase
        self._numbers = {piece: number for number, piece in enumerate(self.vocabulary)}
        missing = [token for token in SPECIAL if token not in self._numbers]
        if missing:
            raise UserError(f"the vocabulary lacks {', '.join(missing)}")
        self.pad, self._unknown, self.cls, self.sep, self.mask = (self._numbers[token] for token in SPECIAL)
        self._known: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: str | Path, lowercase: bool = True) -> "WordPiece":
        """Read a ``vocab.txt``, one piece a line.

        Raises:
            UserError: it cannot be read, or lacks special tokens.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the vocabulary {path}: {' '.join(str(error).split())[:160]}") from error
        return cls(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), lowercase)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text."""
        numbers: list[int] = []
        for word in self._words(text):
            known = self._known.get(word)
            if known is None:
                known = self._known[word] = self._pieces(word)
            numbers += known
        return numbers

    def _words(self, text: str) -> list[str]:
        if self.lowercase:
            text = text.lower()
            if not text.isascii():
                decomposed = unicodedata.normalize("NFD", text)
                text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
        return "".join(_spaced(character) for character in text).split()

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        pieces, start = [], 0
        while start < len(word):
            end = len(word)
            while end > start:
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self._numbers:
                    pieces.append(self._numbers[piece])
                    break
                end -= 1
            else:
                return [self._unknown]
            start = end
        return pieces


def _spaced(character: str) -> str:
    """The character as it separates words: blanks around punctuation and CJK, nothing for control characters."""
    if character.isascii():
        if character.isalnum():
            return character
        if character in " \t\n\r":
            return " "
        return f" {character} " if "!" <= character <= "~" else ""
    code, category = ord(character), unicodedata.category(character)
    if code == 0xFFFD or category.startswith("C"):
        return ""
    if category == "Zs":
        return " "
    cjk = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x2FA1F
    return f" {character} " if cjk or category.startswith("P") else character


def make_vocabulary(texts: Iterable[str], size: int = 4000, lowercase: bool = True) -> WordPiece:
    """A vocabulary of one's own: special tokens, characters, the most frequent words, then word endings.

    Args:
        texts: to count words in.
        size: pieces at most.
        lowercase: see ``WordPiece``.
    """
    counter = WordPiece(SPECIAL, lowercase)
    words = Counter(word for text in texts for word in counter._words(text))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    endings: Counter = Counter()
    for word, count in words.items():
        for length in range(2, min(6, len(word))):
            endings[f"##{word[-length:]}"] += count * length
    share = max(0, size - len(pieces))
    common = [word for word, _ in sorted(words.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    pieces += common[: share * 4 // 5]
    rest = [piece for piece, _ in sorted(endings.items(), key=lambda item: (-item[1], item[0]))]
    return WordPiece([*pieces, *rest[: max(0, size - len(pieces))]], lowercase)
