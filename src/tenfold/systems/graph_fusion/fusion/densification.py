"""Triples that a teacher is sure of join the graph for one round, with weights.

They are made afresh from the observed graph in every round, so that an early mistake can disappear.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.graph_fusion.fusion.schedule import Gate
from tenfold.systems.graph_fusion.fusion.teachers import TeacherFile
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex, with_inverses
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.ranking.calibration import ConfidenceCurve


@dataclass(frozen=True)
class Injected:
    """Injected triples and where they come from.

    Attributes:
        triples: ``(m, 3)``, plain relations.
        confidence: ``(m,)`` the teacher's probability.
        weights: ``(m,)`` of the triples in losses and messages.
        cross: ``(m,)`` whether the query's relation was new to its entity.
    """

    triples: Tensor
    confidence: Tensor
    weights: Tensor
    cross: Tensor

    def __len__(self) -> int:
        return len(self.triples)

    def as_answers(self, num_relations: int, factor: float = 1.0) -> AnswerIndex | None:
        """Weighted answers in both directions: the inverse is what brings new signal to the tail."""
        if not len(self):
            return None
        return AnswerIndex(with_inverses(self.triples, num_relations), num_relations, factor * self.weights.repeat(2))


def candidates_of(teacher: TeacherFile, graph: KnowledgeGraph) -> Injected:
    """The teacher's best answer of every unobserved query, as triples with plain relations; the surest copy of each.

    Args:
        teacher: beliefs, known answers masked.
        graph: for the number of relations.
    """
    queries = torch.from_numpy(np.array(teacher.queries))  # copies: the files are read-only
    best = torch.from_numpy(np.array(teacher.ids[:, 0], dtype=np.int64))
    confidence = torch.from_numpy(np.array(teacher.probabilities[:, 0], dtype=np.float32))
    weights = torch.from_numpy(np.array(teacher.weights))
    cross = torch.from_numpy(np.array(teacher.cross))
    relation = queries[:, 1] % graph.num_relations
    inverse = queries[:, 1] >= graph.num_relations
    triples = torch.stack(
        [torch.where(inverse, best, queries[:, 0]), relation, torch.where(inverse, queries[:, 0], best)], 1
    )
    keep = weights > 0
    triples, confidence, cross = triples[keep], confidence[keep], cross[keep]
    order = confidence.argsort(descending=True, stable=True)
    triples, confidence, cross = triples[order], confidence[order], cross[order]
    _, place = triples.unique(dim=0, return_inverse=True)
    first = torch.full((int(place.max()) + 1 if len(place) else 0,), len(place))
    first.scatter_reduce_(0, place, torch.arange(len(place)), "amin")
    first = first.sort().values
    return Injected(triples[first], confidence[first], confidence[first].clamp(max=1.0), cross[first])


def densify(
    teacher: TeacherFile,
    graph: KnowledgeGraph,
    *,
    gate: Gate = "threshold",
    threshold: float = 0.5,
    share: float = 0.3,
    student: TeacherFile | None = None,
    agreement: int = 10,
    weighted: bool = True,
    sample: bool = False,
    seed: int = 0,
) -> Injected:
    """Choose the triples of one round.

    Args:
        teacher: the posterior's beliefs on the unobserved queries.
        graph: the graph. Validation triples only shape the curve of ``validated``; no validation or test triple is
            looked up to accept or refuse a candidate.
        gate: ``threshold``: raw confidence of at least ``threshold``; ``validated``: candidates are ordered by one
            curve per source, from raw confidence to the hit rate on validation facts, without a threshold.
        threshold: delta.
        share: rho: at most so many triples, as a share of the training triples, the surest first.
        student: the other encoder's beliefs on the same queries; a candidate must be among its best ``agreement``.
        agreement: how many; 0 asks for none.
        weighted: weigh a triple by its confidence; else by 1.
        sample: draw the answer from the teacher's beliefs in place of the best one, with weight 1.
        seed: of the draw.
    """
    if sample:
        teacher = _sampled(teacher, seed)
    elif student is not None and agreement > 0:
        teacher = _agreeing(teacher, student, agreement)
    found = candidates_of(teacher, graph)
    order = found.confidence
    if gate == "validated":
        order = _validated(found, graph)
        accepted = torch.ones(len(found), dtype=torch.bool)
    else:
        accepted = found.confidence >= (0.0 if sample else threshold)
    chosen = accepted.nonzero().flatten()
    chosen = chosen[order[chosen].argsort(descending=True, stable=True)][: round(share * len(graph.train))]
    weights = found.weights[chosen] if weighted and not sample else torch.ones(len(chosen))
    return Injected(found.triples[chosen], found.confidence[chosen], weights, found.cross[chosen])


def _validated(found: Injected, graph: KnowledgeGraph) -> Tensor:
    facts = AnswerIndex(graph.valid, graph.num_relations)
    hits = facts.contains(found.triples)
    order = torch.zeros(len(found))
    for source in (False, True):
        mine = found.cross == source
        curve = ConfidenceCurve(found.confidence[mine], hits[mine])
        # Isotonic curves have steps; within one the raw confidence decides.
        order[mine] = curve(found.confidence[mine]) + 1e-4 * found.confidence[mine]
    return order


def _agreeing(teacher: TeacherFile, student: TeacherFile, agreement: int) -> TeacherFile:
    best = np.asarray(teacher.ids[:, :1])
    agrees = (np.asarray(student.ids[:, :agreement]) == best).any(1)
    weights = np.asarray(teacher.weights) * agrees
    return TeacherFile(teacher.queries, teacher.cross, weights, teacher.ids, teacher.probabilities, teacher.tail)


def _sampled(teacher: TeacherFile, seed: int) -> TeacherFile:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.from_numpy(np.array(teacher.probabilities, dtype=np.float32))
    drawn = torch.multinomial(probabilities + 1e-12, 1, generator=generator)
    ids = torch.from_numpy(np.array(teacher.ids, dtype=np.int64)).gather(1, drawn)
    chance = probabilities.gather(1, drawn)
    return TeacherFile(
        teacher.queries, teacher.cross, teacher.weights, ids.numpy(), chance.numpy().astype(np.float16), teacher.tail
    )


def precision_curve(found: Injected, graph: KnowledgeGraph, thresholds: Tensor) -> dict[str, list[float | None]]:
    """How many candidates above a confidence are true, judged by everything known: hidden, validation and test triples.

    For reports only: training never sees it.

    Args:
        found: candidates, of all confidences.
        graph: with ``hidden`` triples; without them, most true candidates count as false.
        thresholds: ``(k,)``.

    Returns:
        ``threshold``, ``count`` of candidates, ``precision``; ``precision_known``: had only the sparse set's own
        validation and test facts been known; the last two ``None`` where no candidate is left.
    """
    own = torch.cat([graph.valid, graph.test])
    everything = torch.cat([own, graph.hidden])
    true = AnswerIndex(everything, graph.num_relations).contains(found.triples).double()
    listed = AnswerIndex(own, graph.num_relations).contains(found.triples).double()
    curve: dict[str, list[float | None]] = {"threshold": [], "count": [], "precision": [], "precision_known": []}
    for threshold in thresholds.tolist():
        above = found.confidence >= threshold
        curve["threshold"].append(threshold)
        curve["count"].append(int(above.sum()))
        for name, hits in (("precision", true), ("precision_known", listed)):
            curve[name].append(float(hits[above].mean()) if bool(above.any()) else None)
    return curve
