"""Scores without training: the lead of each document, chance, TF-IDF with the query, cosine of sentence vectors."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.query_summarizer.encoders.sentence_vectors import SentenceVectors
from tenfold.systems.query_summarizer.text.sentences import Document
from tenfold.systems.query_summarizer.text.words import content_words, tfidf_rows


def _texts(documents: Sequence[Document]) -> list[str]:
    return [sentence.text for document in documents for sentence in document.sentences]


def lead_scores(documents: Sequence[Document]) -> Tensor:
    """Earlier sentences first, documents in turn ``(n,)``."""
    places = [place for document in documents for place in range(len(document.sentences))]
    return -torch.tensor(places, dtype=torch.float64)


def random_scores(documents: Sequence[Document], seed: int) -> Tensor:
    """Chance ``(n,)``."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.random(sum(len(document.sentences) for document in documents)))


class TfIdfExtractor:
    """Cosine of TF-IDF vectors with the query, weights from the documents themselves; needs no model.

    Without a query (masked, or one without content words) sentences are compared with the documents' mean instead.
    """

    def score(self, query: str, documents: Sequence[Document], *, masked: bool = False) -> Tensor:
        """One score per sentence ``(n,)`` in [0, 1]."""
        rows, asked = tfidf_rows(_texts(documents), ["" if masked else query])
        if masked or not content_words(query):
            mean = np.asarray(rows.mean(0)).ravel()
            return torch.from_numpy(np.asarray(rows @ mean).ravel() / (np.linalg.norm(mean) or 1.0))
        return torch.from_numpy(np.asarray((rows @ asked.T).todense()).ravel())


class CosineExtractor:
    """Cosine of frozen sentence vectors with the query's.

    Args:
        vectors: the encoder.
    """

    def __init__(self, vectors: SentenceVectors) -> None:
        self.vectors = vectors

    def score(self, query: str, documents: Sequence[Document], *, masked: bool = False) -> Tensor:
        """One score per sentence ``(n,)`` in [-1, 1]."""
        encoded = self.vectors.encode([query, *_texts(documents)])
        asked = encoded[1:].mean(0) if masked else encoded[0]
        return encoded[1:] @ asked
