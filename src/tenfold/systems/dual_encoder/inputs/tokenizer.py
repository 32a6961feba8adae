"""Questions to token numbers: ``[CLS] w_1 ... w_m [SEP]``."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.errors import UserError, require
from tenfold.files import printable, read_text

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD = re.compile(r"\w+|[^\w\s]")


class QuestionTokenizer:
    """Splits questions by a fixed vocabulary.

    Args:
        vocabulary: pieces in the order of their numbers, with ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]``, ``[MASK]``.
        kind: ``words``: lower-case words and signs; ``wordpiece``: BERT's pieces (the package ``tokenizers``).
        max_tokens: longest question, ``[CLS]`` and ``[SEP]`` included.

    Raises:
        UserError: a special token is missing, or a piece occurs twice.
    """

    def __init__(
        self, vocabulary: Sequence[str], kind: Literal["words", "wordpiece"] = "words", max_tokens: int = 40
    ) -> None:
        self.vocabulary, self.kind, self.max_tokens = list(vocabulary), kind, max_tokens
        self.numbers = {piece: number for number, piece in enumerate(self.vocabulary)}
        missing = [token for token in SPECIAL if token not in self.numbers]
        if missing or len(self.numbers) != len(self.vocabulary):
            what = f"lacks {', '.join(missing)}" if missing else "holds a piece twice"
            raise UserError(f"the vocabulary {what}")
        if kind not in ("words", "wordpiece"):
            raise UserError(f"a tokenizer is of the kind 'words' or 'wordpiece'; got {printable(kind)!r}")
        self.pad, self.unknown, self.cls, self.sep, self.mask = (self.numbers[token] for token in SPECIAL)
        if self.pad:
            raise UserError("[PAD] must be the first piece of the vocabulary")

    @classmethod
    def of_words(cls, questions: Iterable[str], max_tokens: int = 40) -> "QuestionTokenizer":
        """A vocabulary of all words of some questions, in alphabetical order.

        Args:
            questions: those of training.
            max_tokens: see the class.
        """
        words = {word for question in questions for word in _WORD.findall(question.lower())}
        return cls([*SPECIAL, *sorted(words)], "words", max_tokens)

    @classmethod
    def from_file(cls, path: str | Path, max_tokens: int = 40) -> "QuestionTokenizer":
        """BERT's ``vocab.txt``, one piece a line.

        Args:
            path: the file.
            max_tokens: see the class.

        Raises:
            UserError: it cannot be read, or is no such vocabulary.
        """
        lines = read_text(path).split("\n")
        return cls(lines[:-1] if lines[-1] == "" else lines, "wordpiece", max_tokens)

    @cached_property
    def _wordpiece(self) -> Any:
        tokenizers = require("tokenizers", "transformers")
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        found = tokenizers.Tokenizer(WordPiece(vocab=self.numbers, unk_token="[UNK]", max_input_chars_per_word=100))
        found.normalizer = BertNormalizer(lowercase=True)
        found.pre_tokenizer = BertPreTokenizer()
        return found

    def encode(self, question: str) -> list[int]:
        """Numbers of a question, ``[CLS]`` and ``[SEP]`` around them.

        Raises:
            UserError: the question is empty, or longer than ``max_tokens``; nothing is cut off in silence.
        """
        if self.kind == "words":
            inner = [self.numbers.get(word, self.unknown) for word in _WORD.findall(question.lower())]
        else:
            inner = self._wordpiece.encode(question, add_special_tokens=False).ids
        if not inner:
            raise UserError("a question is empty")
        if len(inner) + 2 > self.max_tokens:
            raise UserError(
                f"the question {printable(question, 80)!r} has {len(inner) + 2} tokens, more than the model's limit of "
                f"{self.max_tokens}; shorten it"
            )
        return [self.cls, *inner, self.sep]

    def batch(self, questions: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Padded token numbers of several questions, and which of them are words: ``(n, tokens)`` each.

        Args:
            questions: see ``encode``.
            length: tokens to pad to; the longest question's where ``None``.
        """
        rows = [self.encode(question) for question in questions]
        length = length or max(map(len, rows))
        text = torch.full((len(rows), length), self.pad)
        for place, row in enumerate(rows):
            text[place, : len(row)] = torch.tensor(row)
        return text, text != self.pad

    def unknown_words(self, question: str) -> list[str]:
        """Words of a question that the vocabulary has not, for a warning; none of word pieces."""
        if self.kind == "wordpiece":
            return []
        return [word for word in _WORD.findall(question.lower()) if word not in self.numbers]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for ``model.json``."""
        return {"kind": self.kind, "max_tokens": self.max_tokens, "vocabulary": self.vocabulary}

    @classmethod
    def from_dict(cls, values: Any) -> "QuestionTokenizer":
        """What ``to_dict`` wrote.

        Raises:
            UserError: a value is missing or wrong.
        """
        try:
            vocabulary = [str(piece) for piece in values["vocabulary"]]
            return cls(vocabulary, values["kind"], int(values["max_tokens"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("the model's tokenizer is damaged") from error
