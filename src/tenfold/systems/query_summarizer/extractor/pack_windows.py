"""Packing: a query and whole sentences into windows of at most T tokens; every sentence gets its score.


    [CLS] q_1 .. q_m [SEP] [CLS] s_1 [SEP] [CLS] s_2 [SEP] ... [CLS] s_n [SEP]
      type 0 .. 0           1  ..   1       0 ..  0            (interval; pair: 1 for all)

Every window repeats the query; a document always begins a new window. The first ``[CLS]`` is the query's and never a
candidate. The paper says no more than that sentences are extracted by a BERT; the layout is reconstructed from
BertSum (Liu and Lapata, EMNLP 2019) with the query in front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.encoders.local_folder import Tokenizer

Segments = Literal["interval", "pair"]


@dataclass(frozen=True)
class Window:
    """One input of the encoder.

    Attributes:
        ids: tokens.
        types: token types.
        cls: position of each sentence's ``[CLS]``.
        sentences: number of each sentence within its topic.
    """

    ids: list[int]
    types: list[int]
    cls: list[int]
    sentences: list[int]


@dataclass(frozen=True)
class Packing:
    """How windows are made.

    Attributes:
        max_tokens: T, tokens of a window at most.
        query_tokens: the query is cut there.
        sentence_tokens: a sentence is cut there, its two marks included.
        segments: token types: ``interval`` (sentences alternate, the first is 1) or ``pair`` (all 1).
        overlap: sentences that a window repeats from the one before; their scores are averaged.
    """

    max_tokens: int = 512
    query_tokens: int = 64
    sentence_tokens: int = 96
    segments: Segments = "interval"
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.segments not in ("interval", "pair"):
            raise UserError(f"segments is interval or pair; got {self.segments!r}")
        if self.query_tokens < 1 or self.sentence_tokens < 3 or self.overlap < 0:
            raise UserError("a query has at least 1 token, a sentence at least 3, and overlap is not negative")
        if self.query_tokens + 2 + self.sentence_tokens > self.max_tokens:
            raise UserError(
                f"a window of {self.max_tokens} tokens does not hold a query of {self.query_tokens} and a sentence of "
                f"{self.sentence_tokens}: lower query_tokens or sentence_tokens"
            )


def pack_windows(
    query: Sequence[int], documents: Sequence[Sequence[Sequence[int]]], tokenizer: Tokenizer, packing: Packing
) -> list[Window]:
    """Windows of a topic. Without overlap every sentence is in exactly one.

    Args:
        query: its pieces; cut from the right.
        documents: pieces of each sentence of each document.
        tokenizer: for its special tokens.
        packing: sizes.
    """
    head = [tokenizer.cls, *query[: packing.query_tokens], tokenizer.sep]
    windows: list[Window] = []
    number = 0
    for document in documents:
        framed = [[tokenizer.cls, *pieces[: packing.sentence_tokens - 2], tokenizer.sep] for pieces in document]
        start = 0
        while start < len(framed):
            stop, size = start, len(head)
            while stop < len(framed) and (stop == start or size + len(framed[stop]) <= packing.max_tokens):
                size += len(framed[stop])
                stop += 1
            windows.append(_window(head, framed[start:stop], number + start, packing.segments))
            if stop == len(framed):
                break
            start = max(start + 1, stop - packing.overlap)
        number += len(framed)
    return windows


def _window(head: list[int], sentences: list[list[int]], first: int, segments: Segments) -> Window:
    ids, types, cls = list(head), [0] * len(head), []
    for place, sentence in enumerate(sentences, 1):
        cls.append(len(ids))
        ids += sentence
        types += [1 if segments == "pair" else place % 2] * len(sentence)
    return Window(ids, types, cls, list(range(first, first + len(sentences))))


def collate_windows(windows: Sequence[Window], pad: int) -> dict[str, Tensor]:
    """Windows as one batch, padded.

    Returns:
        ``ids``, ``types`` ``(batch, tokens)`` int64, ``mask`` ``(batch, tokens)`` bool, ``cls`` ``(batch, sentences)``
        int64, ``there`` ``(batch, sentences)`` bool.
    """
    tokens, sentences = (max(len(getattr(w, name)) for w in windows) for name in ("ids", "cls"))
    batch = {
        "ids": torch.full((len(windows), tokens), pad),
        "types": torch.zeros(len(windows), tokens, dtype=torch.long),
        "mask": torch.zeros(len(windows), tokens, dtype=torch.bool),
        "cls": torch.zeros(len(windows), sentences, dtype=torch.long),
        "there": torch.zeros(len(windows), sentences, dtype=torch.bool),
    }
    for row, window in enumerate(windows):
        size, number = len(window.ids), len(window.cls)
        batch["ids"][row, :size] = torch.tensor(window.ids)
        batch["types"][row, :size] = torch.tensor(window.types)
        batch["mask"][row, :size] = True
        batch["cls"][row, :number] = torch.tensor(window.cls, dtype=torch.long)
        batch["there"][row, :number] = True
    return batch


def merge_scores(windows: Sequence[Window], scores: Sequence[Tensor], sentences: int) -> Tensor:
    """One score per sentence ``(sentences,)``; mean where windows overlap.

    Args:
        windows: all windows of a topic.
        scores: for each its ``(sentences of the window,)``.
        sentences: of the topic.
    """
    total, count = torch.zeros(sentences), torch.zeros(sentences)
    for window, values in zip(windows, scores, strict=True):
        total[window.sentences] += values
        count[window.sentences] += 1
    if bool((count == 0).any()):
        raise ValueError("a sentence is in no window")
    return total / count
