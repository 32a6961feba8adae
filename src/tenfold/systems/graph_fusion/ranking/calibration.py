"""Temperatures that make the scores of different encoders comparable, and honest confidence."""

import math

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.answers import with_inverses
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph


@torch.no_grad()
def fit_temperature(
    scorer: QueryScorer, graph: KnowledgeGraph, *, limit: int = 2000, seed: int = 0, batch_size: int = 512
) -> float:
    """The temperature c that minimises the validation NLL of softmax(scores / c), training answers masked.

    Args:
        scorer: the encoder, in eval mode while it is asked.
        graph: the graph; only its training and validation splits are read.
        limit: validation triples used, drawn at random.
        seed: of the choice.
        batch_size: queries scored at a time.

    Returns:
        c in [1e-3, 1e3].
    """
    triples = graph.valid
    if len(triples) > limit:
        triples = triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))[:limit]]
    triples = with_inverses(triples, graph.num_relations)
    known = graph.known("train")
    device = next((p.device for p in scorer.parameters()), torch.device("cpu"))
    training = scorer.training
    scorer.eval()
    blocks = []
    with scorer.encoded():
        for part in triples.split(batch_size):
            scores = scorer.score_all(part[:, 0].to(device), part[:, 1].to(device)).float().cpu()
            owner, answers, _ = known.of(known.find(part[:, :2]))
            keep = answers != part[owner, 2]
            scores[owner[keep], answers[keep]] = -torch.inf
            blocks.append(scores - scores[torch.arange(len(part)), part[:, 2]][:, None])
    scorer.train(training)

    return _best_temperature(torch.cat(blocks))


def _best_temperature(margins: Tensor, steps: int = 30) -> float:
    """The c in [1e-3, 1e3] that minimises the mean of ``logsumexp(margins / c)``.

    The mean is convex in 1 / c. Its slope is the mean margin under the softmax, its curvature their variance, so that
    Newton's steps, kept within the bracket that the slopes have left, need a handful of passes.

    Args:
        margins: ``(n, N)`` scores minus that of the row's answer; -inf is left out.
        steps: passes at most.
    """
    margins = margins.clamp_(min=-1e12)
    low, high, inverse = 1e-3, 1e3, 1.0
    for _ in range(steps):
        belief = (margins * inverse).softmax(1)
        weighted = belief.mul_(margins)
        mean = weighted.sum(1)
        slope = float(mean.double().mean())
        curvature = float((weighted.mul_(margins).sum(1) - mean.square()).double().mean())
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.nan
        wanted = step if low < step < high else math.sqrt(low * high)
        if abs(wanted - inverse) < 1e-4 * inverse:
            return 1 / wanted
        inverse = wanted
    return 1 / inverse


class ConfidenceCurve:
    """Isotonic map from raw confidence to the rate of hits on validation facts, which bounds precision from below.

    Known facts are a sample of the true ones, so that a miss may be true, too.

    Args:
        confidence: ``(n,)`` raw confidences of candidates.
        hits: ``(n,)`` whether each is a validation fact.
    """

    def __init__(self, confidence: Tensor, hits: Tensor) -> None:
        from sklearn.isotonic import IsotonicRegression

        self._curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        self._empty = len(confidence) == 0
        if not self._empty:
            self._curve.fit(confidence.double().numpy(), hits.double().numpy())

    def __call__(self, confidence: Tensor) -> Tensor:
        """``(n,)`` hit rates of confidences."""
        if self._empty:
            return torch.zeros_like(confidence)
        return torch.from_numpy(np.asarray(self._curve.predict(confidence.double().numpy()))).to(confidence.dtype)
