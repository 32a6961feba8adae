"""``HashText``: a text encoder without pretrained weights: hashed words, word pairs and character 4-grams.

An entity has no parameters of its own: what was never seen in training has a vector as soon as it has a text.
"""

import itertools
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.graph_fusion.encoders.check_arguments import at_least
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer

_WORD = re.compile(r"[^\W_]+")
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
BUCKETS = 2**15
WORDS = 40
"""So many words of a text are read."""


def text_features(text: str, buckets: int = BUCKETS, words: int = WORDS) -> Counter[int]:
    """Hashed features of a text and how often each occurs: words, word pairs, 4-grams of ``<word>``.

    Args:
        text: any text; letters and digits of all scripts count, case does not.
        buckets: number of hash values.
        words: how many words are read.
    """
    found = _WORD.findall(text.lower())[:words]
    features: list[str] = list(found)
    features += [f"{a} {b}" for a, b in itertools.pairwise(found)]
    for word in found:
        padded = f"<{word}>"
        features += [f"#{padded[k : k + 4]}" for k in range(max(1, len(padded) - 3))]
    return Counter(zlib.crc32(feature.encode()) % buckets for feature in features)


def feature_matrix(texts: Iterable[str], idf: Tensor | None = None, buckets: int = BUCKETS) -> tuple[Tensor, Tensor]:
    """tf-idf rows of unit length, as a sparse CSR matrix ``(texts, buckets)``, and the idf used ``(buckets,)``.

    Args:
        texts: one per row.
        idf: of an earlier call, for new texts; computed from these texts where ``None``.
        buckets: number of hash values.
    """
    counts = [text_features(text, buckets) for text in texts]
    rows = torch.tensor([row for row, features in enumerate(counts) for _ in features], dtype=torch.int64)
    columns = torch.tensor([column for features in counts for column in features], dtype=torch.int64)
    values = torch.tensor([float(n) for features in counts for n in features.values()])
    if idf is None:
        documents = torch.bincount(columns, minlength=buckets).float()
        idf = ((1 + len(counts)) / (1 + documents)).log() + 1
    values = values * idf[columns]
    length = torch.zeros(len(counts)).index_add_(0, rows, values.square()).sqrt().clamp(min=1e-12)
    values = values / length[rows]
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows, columns]), values, (len(counts), buckets), check_invariants=False
    )
    return matrix.coalesce().to_sparse_csr(), idf


def first_of_same_texts(texts: Sequence[str]) -> Tensor | None:
    """``(n,)`` for each text the first one that is the same; ``None`` if all differ."""
    first: dict[str, int] = {}
    places = [first.setdefault(text, place) for place, text in enumerate(texts)]
    return None if len(first) == len(places) else torch.tensor(places)


class _SparseTimesDense(torch.autograd.Function):
    """``matrix @ weight`` whose backward multiplies by a stored transpose: several times faster than autograd's own."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return torch.sparse.mm(matrix, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return torch.sparse.mm(ctx.transpose, gradient.contiguous()), None, None


class _FixedSparse(nn.Module):
    """A constant sparse matrix that multiplies a dense one. It follows from the texts and is not saved."""

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("offsets", matrix.crow_indices().to(torch.int32), persistent=False)
        self.register_buffer("columns", matrix.col_indices().to(torch.int32), persistent=False)
        self.register_buffer("values", matrix.values(), persistent=False)
        self.columns_total = matrix.shape[1]
        self._made: tuple[Tensor, Tensor, torch.device] | None = None

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The matrix and its transpose, CSR, on the buffers' device."""
        values = self.values
        if self._made is None or self._made[2] != values.device:
            offsets, columns = self.offsets.long(), self.columns.long()
            size = (len(offsets) - 1, self.columns_total)
            matrix = torch.sparse_csr_tensor(offsets, columns, values, size, check_invariants=False)
            self._made = matrix, matrix.to_sparse_coo().t().coalesce().to_sparse_csr(), values.device
        return self._made[0], self._made[1]

    def forward(self, weight: Tensor) -> Tensor:
        matrix, transpose = self.matrices()
        return _SparseTimesDense.apply(weight, matrix, transpose)


class HashText(QueryScorer):
    """Scores by texts: cosine of a query's and a candidate's vector, over a learned temperature.

    The query is an MLP of the entity's vector and the relation's: a learned vector per direction plus the words of the
    relation, those of an inverse marked as such.

    Args:
        num_entities: N.
        num_relations: R.
        dim: width d.
        entity_texts: a text per entity.
        relation_texts: a text per relation.
        dropout: in the query's MLP.
        buckets: number of hash values.
    """

    similarity = "cos"
    place: Tensor
    idf: Tensor

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        entity_texts: Sequence[str],
        relation_texts: Sequence[str],
        dim: int = 100,
        dropout: float = 0.2,
        buckets: int = BUCKETS,
    ) -> None:
        super().__init__(num_entities, num_relations)
        if len(entity_texts) != num_entities or len(relation_texts) != num_relations:
            raise ValueError("HashText needs one text per entity and per relation")
        at_least(1, dim=dim, buckets=buckets)
        matrix, idf = feature_matrix(entity_texts, buckets=buckets)
        directed = [*relation_texts, *(f"inverse {text} inverse" for text in relation_texts)]
        relations, _ = feature_matrix(directed, buckets=buckets)
        self._same = first_of_same_texts(entity_texts)
        self._cut = sum(len(text) >= 2 * WORDS and len(_WORD.findall(text)) > WORDS for text in entity_texts)
        # Only buckets that some text uses get a weight row; a new text's other features are unknown to training anyway.
        used = torch.zeros(buckets, dtype=torch.bool)
        used[matrix.col_indices()] = True
        used[relations.col_indices()] = True
        self.register_buffer("place", torch.where(used, used.cumsum(0) - 1, -1).to(torch.int32), persistent=False)
        self.register_buffer("idf", idf, persistent=False)
        self.entity_features = _FixedSparse(_pick_columns(matrix, self.place))
        self.relation_features = _FixedSparse(_pick_columns(relations, self.place))
        self.features = nn.Parameter(torch.randn(int(used.sum()), dim) / dim**0.5)
        self.relation_embedding = nn.Parameter(nn.init.xavier_normal_(torch.empty(2 * num_relations, dim)))
        self.query = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.candidate = nn.Linear(dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor(20.0).log())

    def notes(self) -> list[str]:
        """How many texts are longer than what is read of them."""
        return [f"Of {self._cut:,} of {self.num_entities:,} entity texts only the first {WORDS} words are read."] * (
            self._cut > 0
        )

    def encode(self) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of all texts, of all relations, and unit vectors of all candidates."""
        texts = self.entity_features(self.features)
        relations = self.relation_embedding + self.relation_features(self.features)
        return texts, relations, F.normalize(self.candidate(texts), dim=-1)

    def candidate_vectors(self) -> Tensor:
        """See `QueryScorer`."""
        return self.encoding[2]

    def entity_vectors(self, entities: Tensor | None = None) -> Tensor:
        """See `QueryScorer`; of unit length."""
        vectors = self.encoding[2]
        return vectors if entities is None else vectors[entities]

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`; of unit length."""
        texts, kinds, _ = self.encoding
        return self._query(texts[heads], kinds[relations])

    def _query(self, texts: Tensor, relations: Tensor) -> Tensor:
        return F.normalize(self.query(torch.cat([texts, relations], 1)), dim=-1)

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Cosine times the inverse temperature."""
        with self.encoded():
            return (self.query_vectors(heads, relations) * self.score_scale()) @ self.encoding[2].T

    @property
    def has_vectors(self) -> bool:
        """Scores are a product of vectors."""
        return True

    def score_scale(self) -> Tensor:
        """The inverse temperature, at most 100."""
        return self.log_temperature.exp().clamp(max=100.0)

    def vectors_of_texts(self, texts: Sequence[str]) -> Tensor:
        """``(n, d)`` raw vectors of new texts, by the features that training knew."""
        place = self.place
        matrix, _ = feature_matrix(texts, idf=self.idf.cpu(), buckets=len(place))
        return torch.sparse.mm(_pick_columns(matrix, place.cpu()), self.features.detach().cpu()).to(
            self.features.device
        )

    def same_candidates(self) -> Tensor | None:
        """Entities of the same text: their vectors may differ in the last digit, but must count as one."""
        return self._same

    def score_texts(self, texts: Sequence[str], relations: Tensor) -> Tensor:
        """Raw scores ``(n, N)`` of all entities for queries whose entity is only a text."""
        with self.encoded():
            queries = self._query(self.vectors_of_texts(texts), self.encoding[1][relations])
            return queries @ self.encoding[2].T * self.score_scale()

    def score_new_candidates(self, heads: Tensor, relations: Tensor, texts: Sequence[str]) -> Tensor:
        """Raw scores ``(B, n)`` of candidates that are only texts."""
        with self.encoded():
            candidates = F.normalize(self.candidate(self.vectors_of_texts(texts)), dim=-1)
            return self.query_vectors(heads, relations) @ candidates.T * self.score_scale()


def _pick_columns(matrix: Tensor, place: Tensor) -> Tensor:
    """The columns of a CSR matrix that have a place, renumbered; the others are dropped."""
    coo = matrix.to_sparse_coo().coalesce()
    rows, columns = coo.indices()
    moved = place[columns].long()
    keep = moved >= 0
    size = (matrix.shape[0], int(place.max()) + 1)
    picked = torch.sparse_coo_tensor(
        torch.stack([rows[keep], moved[keep]]), coo.values()[keep], size, check_invariants=False
    )
    return picked.coalesce().to_sparse_csr()
