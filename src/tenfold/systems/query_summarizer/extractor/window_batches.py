"""Training batches of windows, in both forms of the extractor; they resume in mid-epoch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tenfold.data.batches import ResumableBatches
from tenfold.errors import UserError
from tenfold.systems.query_summarizer.extractor.fast_scorer import match_features, window_index
from tenfold.systems.query_summarizer.extractor.pack_windows import collate_windows
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.sets.topic import Topic


class VectorWindows(ResumableBatches):
    """Shuffled batches for ``FastScorer``, cut from a table of sentence vectors that topics share.

    Args:
        topics: with documents.
        labels: of each topic, one per sentence.
        table: vectors ``(sentences, width)`` of all documents.
        rows: for each document id the rows of its sentences in the table, first and behind the last.
        queries: ``(topics, width)``; zeros train without a query.
        words: TF-IDF cosines with the query of each topic's sentences; ``None`` trains without a query.
        batch_size: windows of a step.
        seed: of the order.
    """

    def __init__(
        self,
        topics: Sequence[Topic],
        labels: Sequence[Sequence[float]],
        table: Tensor,
        rows: dict[str, tuple[int, int]],
        queries: Tensor,
        words: Sequence[Tensor] | None,
        batch_size: int,
        *,
        seed: int,
    ) -> None:
        index, deciles, targets, owners, features = [], [], [], [], []
        for number, (topic, own) in enumerate(zip(topics, labels, strict=True)):
            spans = [rows[document.id] for document in topic.documents]
            places, tenths = window_index([stop - start for start, stop in spans])
            flat = torch.cat([torch.arange(start, stop) for start, stop in spans])
            there = places >= 0
            index.append(torch.where(there, flat[places.clamp(min=0)], -1))
            targets.append(torch.where(there, torch.tensor(own, dtype=torch.float32)[places.clamp(min=0)], 0.0))
            deciles.append(tenths)
            matched = match_features(
                queries[number], table[flat], torch.zeros(len(flat)) if words is None else words[number]
            )
            features.append(torch.where(there[..., None], matched[places.clamp(min=0)], 0.0))
            owners.append(torch.full((len(places),), number))
        if not index:
            raise UserError("there is no topic to train on")
        self.index, self.deciles, self.targets = torch.cat(index), torch.cat(deciles), torch.cat(targets)
        self.owners, self.table, self.queries = torch.cat(owners), table, queries
        self.features = torch.cat(features)
        super().__init__(len(self.index), batch_size, seed)

    def batch(self, windows: Tensor) -> dict[str, Tensor]:
        """The batch of some windows, by number."""
        places = self.index[windows]
        return {
            "vectors": self.table[places.clamp(min=0)].float(),
            "query": self.queries[self.owners[windows]].float(),
            "features": self.features[windows],
            "deciles": self.deciles[windows],
            "there": places >= 0,
            "labels": self.targets[windows],
        }

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        share = self._share()
        for rows in self._rows():
            self._advance()
            yield self.batch(rows[share])

    @property
    def prior(self) -> float:
        """Share of positive sentences, within [0.001, 0.999]."""
        there = self.index >= 0
        return float((self.targets[there] > 0.5).float().mean().clamp(1e-3, 1 - 1e-3))


class TokenWindows(ResumableBatches):
    """Shuffled batches for ``QBert``.

    Args:
        model: whose packing and tokenizer make the windows.
        topics: with documents.
        labels: of each topic, one per sentence.
        batch_size: windows of a step.
        seed: of the order.
        masked: train without the query.
    """

    def __init__(
        self,
        model: QBert,
        topics: Sequence[Topic],
        labels: Sequence[Sequence[float]],
        batch_size: int,
        *,
        seed: int,
        masked: bool = False,
    ) -> None:
        self.windows, self.targets = [], []
        for topic, own in zip(topics, labels, strict=True):
            for window in model.windows(topic.query, topic.documents, masked):
                self.windows.append(window)
                self.targets.append([own[number] for number in window.sentences])
        if not self.windows:
            raise UserError("there is no topic to train on")
        self.pad = model.tokenizer.pad
        super().__init__(len(self.windows), batch_size, seed)

    def batch(self, windows: Tensor) -> dict[str, Tensor]:
        """The batch of some windows, by number."""
        chosen = windows.tolist()
        batch = collate_windows([self.windows[number] for number in chosen], self.pad)
        labels = torch.zeros(batch["there"].shape)
        for row, number in zip(labels, chosen, strict=True):
            row[: len(self.targets[number])] = torch.tensor(self.targets[number])
        return {**batch, "labels": labels}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        share = self._share()
        for rows in self._rows():
            self._advance()
            yield self.batch(rows[share])

    @property
    def prior(self) -> float:
        """Share of positive sentences, within [0.001, 0.999]."""
        flat = [value for own in self.targets for value in own]
        return min(max(sum(value > 0.5 for value in flat) / max(len(flat), 1), 1e-3), 1 - 1e-3)


def single_windows(batches: VectorWindows | TokenWindows, most: int = 0) -> list[dict[str, Tensor]]:
    """Windows one by one, as scores by gradient want them; the first ``most``, or all."""
    count = min(most or batches.samples, batches.samples)
    return [batches.batch(torch.tensor([number])) for number in range(count)]
