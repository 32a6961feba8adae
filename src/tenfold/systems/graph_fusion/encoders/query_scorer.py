"""What an encoder must offer to be fused: scores of all candidates for queries. The contract, and its checks.

An encoder of your own subclasses `QueryScorer` and gives ``query_vectors`` and ``entity_vectors``, or
``score_all``; everything else (training, fusion, evaluation, serving) follows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError

Similarity = Literal["dot", "cos", "l1", "l2"]


class QueryScorer(nn.Module):
    """An encoder of a knowledge graph: scores every entity as the answer of a query ``(h, r)``.

    Implement ``query_vectors`` and ``entity_vectors`` (and get sharding, tiles, nearest neighbours and caching), or
    ``score_all``. Scores are raw: any real numbers, the larger the likelier; their softmax is the encoder's belief.

    Args:
        num_entities: N.
        num_relations: R; queries have relations in [0, 2R), inverses from R on.

    Attributes:
        similarity: how query and entity vectors are compared: ``dot``, ``cos``, or negated distance ``l1``, ``l2``.
    """

    similarity: Similarity = "dot"

    def __init__(self, num_entities: int, num_relations: int) -> None:
        super().__init__()
        self.num_entities = num_entities
        self.num_relations = num_relations
        self._kept: list[Any] = []  # in a list: a parameter kept as an attribute would become part of the state

    # --- what an encoder implements -----------------------------------------------------------------------------

    def encode(self) -> Any:
        """What depends on the parameters but on no query, computed once per step; entity vectors by default.

        Encoders that compute vectors of all entities together (graph networks, text towers) return them here and read
        them from `encoding`.
        """
        return self.entity_vectors()

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """``(B, d)`` vectors of queries; ``(B,)`` heads and ``(B,)`` relations in [0, 2R)."""
        raise NotImplementedError(f"{type(self).__name__} has no query vectors")

    def entity_vectors(self, entities: Tensor | None = None) -> Tensor:
        """``(n, d)`` vectors of the given candidates, or of all N."""
        raise NotImplementedError(f"{type(self).__name__} has no entity vectors")

    def entity_bias(self) -> Tensor | None:
        """``(N,)`` added to every query's scores; none by default."""
        return None

    def supervised_loss(self, batch: Any) -> Tensor | None:
        """A loss of the encoder's own on a `QueryBatch`; ``None`` for the loss of the settings."""
        return None

    def set_graph(self, edges: Tensor, relations: Tensor, weights: Tensor) -> None:
        """Hook of graph encoders: ``(2, M)`` head and tail, ``(M,)`` plain relations, ``(M,)`` weights of the edges."""

    def begin_step(self, answers: Tensor) -> None:
        """Hook before a training step: ``(n,)`` entities whose vectors must get gradients."""

    def notes(self) -> list[str]:
        """What the encoder leaves out of what it was given, in sentences with numbers; nothing by default."""
        return []

    # --- what follows -------------------------------------------------------------------------------------------

    @property
    def has_vectors(self) -> bool:
        """Whether query and entity vectors exist, so that scores can be computed in tiles and shards."""
        return (
            type(self).query_vectors is not QueryScorer.query_vectors and type(self).score_all is QueryScorer.score_all
        )

    @property
    def encoding(self) -> Any:
        """What `encode` gave, from the surrounding `encoded` block or computed now."""
        return self._kept[0] if self._kept else self.encode()

    def keep_encoding(self, encoding: Any) -> None:
        """Use an encoding until `drop_encoding`: of parameters that stay as they are."""
        self._kept = [encoding]

    def drop_encoding(self) -> None:
        """Encode afresh from now on."""
        self._kept = []

    @contextmanager
    def encoded(self) -> Iterator[None]:
        """While active, `encode` has run once: for one training step, or an evaluation of frozen weights."""
        if self._kept:
            yield
            return
        self.keep_encoding(self.encode())
        try:
            yield
        finally:
            self.drop_encoding()

    def candidate_vectors(self) -> Tensor:
        """``(N, d)`` vectors of all candidates, from the encoding."""
        return self.encoding

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Raw scores ``(B, N)`` of all entities; ``(B,)`` heads and ``(B,)`` relations in [0, 2R)."""
        with self.encoded():
            queries = self.query_vectors(heads, relations)
            return compare(queries, self.candidate_vectors(), self.similarity, self.score_scale(), self.entity_bias())

    def score_scale(self) -> Tensor | float:
        """Factor of the similarity, such as an inverse temperature of cosines."""
        return 1.0

    def score_candidates(self, heads: Tensor, relations: Tensor, candidates: Tensor) -> Tensor:
        """Raw scores ``(B, K)`` of ``(B, K)`` candidates of each query.

        Where there are vectors, only the candidates are compared, unless they are more than there are entities.
        """
        if not self._compares(candidates.shape[1]):
            return self.score_all(heads, relations).gather(1, candidates)
        with self.encoded():
            queries, vectors = self.query_vectors(heads, relations), self.candidate_vectors()[candidates]
            scores = compare_each(queries, vectors, self.similarity) * self.score_scale()
            bias = self.entity_bias()
            return scores if bias is None else scores + bias[candidates]

    def score_answers(
        self, heads: Tensor, relations: Tensor, owner: Tensor, answers: Tensor, shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Raw scores of answers and of a set of candidates that all queries share.

        Where there are vectors, queries are computed once, and no entity is looked at but these.

        Args:
            heads: ``(B,)``.
            relations: ``(B,)`` in [0, 2R).
            owner: ``(n,)`` query of each answer.
            answers: ``(n,)`` entities.
            shared: ``(K,)`` entities.

        Returns:
            ``(n,)`` and ``(B, K)``.
        """
        if not self._compares(len(shared)):
            scores = self.score_all(heads, relations)
            return scores[owner, answers], scores[:, shared]
        with self.encoded():
            chosen = torch.cat([answers, shared])  # one look-up: its gradient is as large as the table
            queries, vectors = self.query_vectors(heads, relations), self.candidate_vectors()[chosen]
            own, further = vectors.split([len(answers), len(shared)])
            scale, bias = self.score_scale(), self.entity_bias()
            positive = compare_each(queries[owner], own[:, None], self.similarity)[:, 0] * scale
            if bias is None:
                return positive, compare(queries, further, self.similarity, scale)
            own_bias, further_bias = bias[chosen].split([len(answers), len(shared)])
            return positive + own_bias, compare(queries, further, self.similarity, scale, further_bias)

    def _compares(self, candidates: int) -> bool:
        return self.has_vectors and candidates < self.num_entities

    def same_candidates(self) -> Tensor | None:
        """``(N,)`` for each entity the first one that every query must score alike; ``None`` if all differ.

        Where there are vectors: those whose vectors and biases are the same bits. A product of matrices may round the
        same numbers differently in two columns, so that ties would depend on how many queries are scored at a time.
        """
        if not self.has_vectors:
            return None
        with self.encoded():
            vectors, bias = self.candidate_vectors(), self.entity_bias()
        return first_of_same(vectors if bias is None else torch.cat([vectors, bias[:, None]], 1))


def compare(
    queries: Tensor, entities: Tensor, similarity: Similarity, scale: Tensor | float = 1.0, bias: Tensor | None = None
) -> Tensor:
    """Similarity ``(B, n)`` of ``(B, d)`` query and ``(n, d)`` entity vectors; distances are negated.

    Args:
        queries: ``(B, d)``.
        entities: ``(n, d)``.
        similarity: see `QueryScorer`.
        scale: factor of the similarity.
        bias: ``(n,)`` added to the scores.
    """
    if similarity in ("l1", "l2"):
        distance = torch.cdist(queries, entities, p=1.0 if similarity == "l1" else 2.0)
        return distance * -scale if bias is None else bias - distance * scale
    if similarity == "cos":
        queries, entities = F.normalize(queries, dim=-1), F.normalize(entities, dim=-1)
    # Scale and bias enter the product: each pass over a (B, n) matrix costs as much as the product of narrow vectors.
    if isinstance(scale, Tensor) or scale != 1.0:
        queries = queries * scale
    return queries @ entities.T if bias is None else torch.addmm(bias, queries, entities.T)


def compare_each(queries: Tensor, entities: Tensor, similarity: Similarity) -> Tensor:
    """Similarity ``(B, K)`` of ``(B, d)`` query vectors and ``(B, K, d)`` vectors of each one's candidates.

    Args:
        queries: ``(B, d)``.
        entities: ``(B, K, d)``.
        similarity: see `QueryScorer`; distances are negated.
    """
    if similarity in ("l1", "l2"):
        return -torch.linalg.vector_norm(queries[:, None] - entities, ord=1 if similarity == "l1" else 2, dim=-1)
    if similarity == "cos":
        queries, entities = F.normalize(queries, dim=-1), F.normalize(entities, dim=-1)
    return torch.einsum("bd,bkd->bk", queries, entities)


@torch.no_grad()
def first_of_same(rows: Tensor) -> Tensor | None:
    """``(N,)`` for each row of ``(N, d)`` the first row of the same values; ``None`` if all rows differ."""
    bits = rows.detach()
    if bits.is_floating_point():
        bits = (bits.float() + 0.0).contiguous().view(torch.int32)  # + 0: minus zero equals zero
    weights = torch.randint(2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(0)).to(rows.device)
    # Sums of products wrap around: the same rows have the same key, and others hardly ever.
    keys = torch.cat([(part.long() * weights).sum(1) for part in bits.split(65_536)])
    _, place, counts = keys.unique(return_inverse=True, return_counts=True)
    if int(counts.max()) == 1:
        return None
    numbers = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(counts, len(rows)).scatter_reduce_(0, place, numbers, "amin")[place]
    shared = (first != numbers).nonzero().flatten()
    really = (bits[shared] == bits[first[shared]]).all(1)
    first[shared[~really]] = shared[~really]
    return first if bool(really.any()) else None


def check_scorer(scorer: QueryScorer, what: str) -> None:
    """Ask an encoder for a few scores and refuse what no fusion can use.

    Args:
        scorer: the encoder.
        what: its name in the message.

    Raises:
        UserError: the scores have a wrong shape or type, are not finite, or do not depend on parameters.
    """
    device = next((p.device for p in scorer.parameters()), torch.device("cpu"))
    heads = torch.zeros(2, dtype=torch.int64, device=device)
    relations = torch.tensor([0, 2 * scorer.num_relations - 1], device=device)
    training = scorer.training
    scorer.eval()
    try:
        with torch.no_grad():
            scores = scorer.score_all(heads, relations)
    except UserError:
        raise
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"the {what} encoder cannot score queries: {type(error).__name__}: {error}") from error
    finally:
        scorer.train(training)
    check_scores(scores, 2, scorer.num_entities, what)


def check_scores(scores: Tensor, queries: int, entities: int, what: str) -> None:
    """Refuse scores of a wrong shape or type, or that are not finite.

    Raises:
        UserError: they are.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise UserError(f"the {what} encoder must give floating-point scores; it gave {type(scores).__name__}")
    if tuple(scores.shape) != (queries, entities):
        raise UserError(
            f"the {what} encoder gave scores of shape {tuple(scores.shape)} for {queries} queries; it must score all "
            f"{entities:,} entities: ({queries}, {entities})"
        )
    low, high = scores.detach().aminmax()  # both are NaN where any score is
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise UserError(f"the {what} encoder gave scores that are not finite (NaN or infinity)")


class FrozenScores(QueryScorer):
    """A table of scores as an encoder; for tests, ensembles and models that only exist as numbers.

    Args:
        scores: ``(N, 2R, N)`` score of the third entity as answer of the first two.
    """

    def __init__(self, scores: Tensor) -> None:
        super().__init__(scores.shape[0], scores.shape[1] // 2)
        self.register_buffer("scores", scores)

    def encode(self) -> Any:
        """Nothing is shared between queries."""
        return ()

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`."""
        scores: Tensor = self.scores  # type: ignore[assignment]
        return scores[heads, relations]
