"""Both encoders at once: ``w log p + (1 - w) log q``. The upper reference, and what fusion makes unnecessary."""

from typing import Any

import torch
from torch import Tensor

from tenfold.losses import log_probabilities
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, first_of_same
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.ranking.calibration import fit_temperature
from tenfold.systems.graph_fusion.ranking.ranks import evaluate_encoder
from tenfold.systems.graph_fusion.ranking.summaries import summarise_ranks


class Ensemble(QueryScorer):
    """Weighted sum of two encoders' calibrated log-probabilities.

    Args:
        structure: one encoder.
        text: the other.
        temperatures: calibration of each.
        weight: w of the structure encoder.
    """

    def __init__(
        self, structure: QueryScorer, text: QueryScorer, temperatures: tuple[float, float], weight: float
    ) -> None:
        super().__init__(structure.num_entities, structure.num_relations)
        self.structure, self.text = structure, text
        self.temperatures, self.weight = temperatures, weight

    def encode(self) -> Any:
        """Each encoder's own encoding, kept in it."""
        return self.structure.encode(), self.text.encode()

    def same_candidates(self) -> Tensor | None:
        """Entities that both encoders must score alike."""
        with self.encoded():
            parts = []
            for encoder, encoding in zip((self.structure, self.text), self.encoding, strict=True):
                encoder.keep_encoding(encoding)
                parts.append(encoder.same_candidates())
                encoder.drop_encoding()
        if parts[0] is None or parts[1] is None:
            return None
        return first_of_same((parts[0] * len(parts[0]) + parts[1].to(parts[0].device)).view(-1, 1))

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`."""
        with self.encoded():
            parts = []
            for encoder, encoding in zip((self.structure, self.text), self.encoding, strict=True):
                encoder.keep_encoding(encoding)
                parts.append(encoder.score_all(heads, relations))
                encoder.drop_encoding()
        p, q = (log_probabilities(part, c) for part, c in zip(parts, self.temperatures, strict=True))
        return self.weight * p + (1 - self.weight) * q


@torch.no_grad()
def fit_ensemble(structure: QueryScorer, text: QueryScorer, graph: KnowledgeGraph, limit: int = 2000) -> Ensemble:
    """The ensemble with the weight of the best validation MRR, among 0, 0.1, ... 1.

    Args:
        structure: a trained encoder.
        text: another one.
        graph: only its validation split is ranked.
        limit: validation triples ranked.
    """
    temperatures = fit_temperature(structure, graph), fit_temperature(text, graph)
    ensembles = [Ensemble(structure, text, temperatures, step / 10) for step in range(11)]
    mrr = [summarise_ranks(evaluate_encoder(made, graph, "valid", limit=limit))["mrr"] for made in ensembles]
    return ensembles[mrr.index(max(mrr))]
