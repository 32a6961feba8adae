"""``FastScorer``: the same task on frozen sentence vectors; trains in about a minute on two cores.


    x_0 = W_q e(q)                                                             the query, in front
    x_i = W_s e(s_i) + W_p (e(s_i) * e(q)) + W_f f_i + pos(i in the window) + decile(i in the document)
    f_i = cosine of e(s_i) and e(q), TF-IDF cosine of the words, and both standardised over the topic
    two Transformer layers over windows of 64 sentences;  z_i = w . x_i + b

Not in the paper.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold.systems.query_summarizer.encoders.sentence_vectors import SentenceVectors
from tenfold.systems.query_summarizer.extractor.baselines import TfIdfExtractor
from tenfold.systems.query_summarizer.text.sentences import Document

WINDOW = 64
DECILES = 10
FEATURES = 4


class FastScorer(nn.Module):
    """A small Transformer over windows of sentence vectors.

    Args:
        width_in: of the sentence vectors.
        width: of the model.
        layers: Transformer layers.
        heads: of attention.
        dropout: share of activations dropped in training.
        prior: share of positive sentences.
    """

    def __init__(
        self,
        width_in: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        self.sentence, self.match, self.query = (nn.Linear(width_in, width, bias=b) for b in (True, False, True))
        self.features = nn.Linear(FEATURES, width, bias=False)
        self.position = nn.Embedding(WINDOW, width)
        self.decile = nn.Embedding(DECILES, width)
        nn.init.normal_(self.position.weight, std=0.02)
        nn.init.normal_(self.decile.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(prior / (1 - prior)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits ``(batch, sentences)``.

        Args:
            batch: ``vectors`` ``(batch, sentences, width_in)``, ``query`` ``(batch, width_in)`` (zeros for none),
                ``features`` ``(batch, sentences, 4)`` (zeros without a query), ``deciles`` ``(batch, sentences)``
                int64, ``there`` ``(batch, sentences)`` bool; at most 64 sentences.
        """
        vectors, query = batch["vectors"], batch["query"]
        scale = vectors.shape[-1] ** 0.5  # vectors have length 1; entries of size 1 suit the layers
        sentences = self.sentence(vectors * scale) + self.match(vectors * query[:, None] * vectors.shape[-1])
        sentences = sentences + self.features(batch["features"])
        places = torch.arange(vectors.shape[1], device=vectors.device)
        sentences = sentences + self.position(places) + self.decile(batch["deciles"])
        hidden = torch.cat([self.query(query * scale)[:, None], sentences], 1)
        absent = torch.cat([torch.zeros_like(batch["there"][:, :1]), ~batch["there"]], 1)
        return self.head(self.layers(hidden, src_key_padding_mask=absent)[:, 1:]).squeeze(-1)

    @torch.inference_mode()
    def score_vectors(
        self, query: Tensor, documents: Sequence[Tensor], features: Tensor, windows_per_batch: int = 64
    ) -> Tensor:
        """Logits ``(n,)`` of all sentences.

        Args:
            query: ``(width_in,)``; zeros for none.
            documents: vectors ``(sentences, width_in)`` of each document.
            features: ``(n, 4)`` of ``match_features``.
            windows_per_batch: windows at a time.
        """
        was_training = self.training
        self.eval()
        device = self.head.weight.device
        index, deciles = window_index([len(document) for document in documents])
        vectors = torch.cat(list(documents)) if documents else query.new_zeros(0, len(query))
        scores = torch.zeros(len(vectors))
        for rows, tenths in zip(index.split(windows_per_batch), deciles.split(windows_per_batch), strict=True):
            there = rows >= 0
            batch = {
                "vectors": vectors[rows.clamp(min=0)].to(device),
                "query": query.to(device).expand(len(rows), -1),
                "features": features[rows.clamp(min=0)].to(device),
                "deciles": tenths.to(device),
                "there": there.to(device),
            }
            scores[rows[there]] = self(batch).float().cpu()[there]
        self.train(was_training)
        return scores


class FastExtractor:
    """A ``FastScorer`` with the frozen vectors it was trained on: scores texts as ``QBert`` does.

    Args:
        scorer: the trained part.
        vectors: the frozen part.
    """

    def __init__(self, scorer: FastScorer, vectors: SentenceVectors) -> None:
        self.scorer, self.vectors = scorer, vectors

    def unread_pieces(self, query: str) -> int:
        """Pieces of a query beyond what the sentence encoder reads."""
        return self.vectors.unread_pieces(query)

    def score(self, query: str, documents: Sequence[Document], *, masked: bool = False) -> Tensor:
        """One logit per sentence ``(n,)``; see ``QBert.score``."""
        texts = [sentence.text for document in documents for sentence in document.sentences]
        encoded = self.vectors.encode([query, *texts])
        asked = torch.zeros_like(encoded[0]) if masked else encoded[0]
        words = torch.zeros(len(texts)) if masked else TfIdfExtractor().score(query, documents)
        lengths = [len(document.sentences) for document in documents]
        return self.scorer.score_vectors(asked, encoded[1:].split(lengths), match_features(asked, encoded[1:], words))


def match_features(query: Tensor, vectors: Tensor, words: Tensor) -> Tensor:
    """How well sentences match the query ``(n, 4)``: both cosines, and both standardised over the topic.

    Args:
        query: ``(width,)``; zeros for none, which give zeros.
        vectors: ``(n, width)`` of the topic's sentences.
        words: ``(n,)`` TF-IDF cosines with the query; zeros for none.
    """
    plain = torch.stack([vectors @ query, words.to(vectors)], 1)
    centred = plain - plain.mean(0)
    return torch.cat([plain, centred / centred.square().mean(0).sqrt().clamp(min=1e-6)], 1)


def window_index(lengths: Sequence[int], window: int = WINDOW) -> tuple[Tensor, Tensor]:
    """Rows of the sentence table in each window, and their deciles; a document begins a new window.

    Args:
        lengths: sentences of each document.
        window: sentences of a window.

    Returns:
        ``(windows, window)`` row numbers, -1 where there is none, and ``(windows, window)`` deciles 0..9.
    """
    rows, tenths, first = [], [], 0
    for length in lengths:
        for start in range(0, length, window):
            stop = min(start + window, length)
            row, tenth = torch.full((window,), -1), torch.zeros(window, dtype=torch.long)
            places = torch.arange(start, stop)
            row[: stop - start] = first + places
            tenth[: stop - start] = places * DECILES // length
            rows.append(row)
            tenths.append(tenth)
        first += length
    if not rows:
        return torch.empty(0, window, dtype=torch.long), torch.empty(0, window, dtype=torch.long)
    return torch.stack(rows), torch.stack(tenths)
