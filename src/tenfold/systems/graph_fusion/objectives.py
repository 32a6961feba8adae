"""What one training step minimises: both encoders on observed queries, or one that learns from the other, frozen."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.batches import QueryBatch
from tenfold.systems.graph_fusion.method import SplitKind, bucket_kl, full_scores_loss, mutual_loss
from tenfold.systems.graph_fusion.sampled_losses import in_batch_loss, sampled_softmax_loss, self_adversarial_loss
from tenfold.systems.graph_fusion.scorers import QueryScorer
from tenfold.systems.graph_fusion.tiles import tiled_cross_entropy, too_large

Side = Literal["structure", "text"]
SIDES: tuple[Side, Side] = ("structure", "text")
SupervisedKind = Literal["softmax", "1vsall", "bce", "nssa", "infonce", "sampled"]


def other(side: Side) -> Side:
    """The encoder on the other side."""
    return "text" if side == "structure" else "structure"


class Pair(nn.Module):
    """Both encoders, as one module for the trainer.

    Args:
        structure: scores by the graph.
        text: scores by texts.
    """

    def __init__(self, structure: QueryScorer, text: QueryScorer) -> None:
        super().__init__()
        self.structure = structure
        self.text = text

    def side(self, name: Side) -> QueryScorer:
        """The encoder of a side."""
        return getattr(self, name)


@dataclass(frozen=True)
class Learning:
    """How one encoder learns from facts.

    Attributes:
        loss: its own supervised loss.
        negatives: of ``nssa`` per positive, of ``sampled`` per batch.
        smoothing: label smoothing.
        learning_rate: of Adam.
        weight_decay: decoupled.
    """

    loss: SupervisedKind = "softmax"
    negatives: int = 256
    smoothing: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float = 0.0

    def needs_all_scores(self, encoder: QueryScorer, queries: int) -> bool:
        """Whether the supervised loss is computed from a matrix of scores.

        A softmax whose matrix would exceed the memory budget is computed in tiles, exactly, where the encoder has
        vectors; see :mod:`~.tiles`.
        """
        if self.loss not in ("softmax", "1vsall", "bce"):
            return False
        return not (self.loss == "softmax" and encoder.has_vectors and too_large(queries, encoder.num_entities))

    def supervised(self, encoder: QueryScorer, batch: QueryBatch, scores: Tensor | None) -> Tensor:
        """The encoder's own loss, else that of the settings.

        Args:
            encoder: the encoder.
            batch: queries and answers.
            scores: ``(B, N)``, where they were computed.
        """
        own = encoder.supervised_loss(batch)
        if own is not None:
            return own
        if self.loss == "nssa":
            return self_adversarial_loss(encoder, batch, self.negatives)
        if self.loss == "infonce":
            return in_batch_loss(encoder, batch)
        if self.loss == "sampled":
            return sampled_softmax_loss(encoder, batch, self.negatives)
        if scores is None:
            return _tiled_softmax(encoder, batch, self.smoothing)
        return full_scores_loss(scores, batch, self.loss, self.smoothing)


def _tiled_softmax(encoder: QueryScorer, batch: QueryBatch, smoothing: float) -> Tensor:
    queries = encoder.query_vectors(batch.heads, batch.relations)
    entities = encoder.candidate_vectors()
    if encoder.similarity == "cos":
        queries, entities = F.normalize(queries, dim=-1), F.normalize(entities, dim=-1)
    elif encoder.similarity != "dot":
        raise UserError(
            f"{encoder.num_entities:,} entities need tiles, which distances have not: use the loss 'sampled'"
        )
    return tiled_cross_entropy(
        queries * encoder.score_scale(),
        entities,
        batch.owner,
        batch.answers,
        batch.weights,
        bias=encoder.entity_bias(),
        smoothing=smoothing,
    )


@dataclass(frozen=True)
class Exchange:
    """How the encoders compare beliefs.

    Attributes:
        lam: weight of M2L.
        temperature: tau.
        split: which part of the KL M2L keeps.
        calibration: temperature of each side's scores.
        seen: ``(N,)`` entities that the structure encoder may judge as teacher; all where ``None``.
    """

    lam: float
    temperature: float
    split: SplitKind
    calibration: dict[Side, float]
    seen: Tensor | None = None

    def allowed(self, teacher: Side, device: torch.device) -> Tensor | None:
        """``(N,)`` entities that a teacher may judge: structure knows nothing of those without an edge."""
        return self.seen.to(device) if teacher == "structure" and self.seen is not None else None

    def mutual(self, learner: Side, scores: Tensor, teacher_scores: Tensor, batch: QueryBatch) -> Tensor:
        """M2L's loss of the learner."""
        teacher = other(learner)
        answers = None if self.split == "full" else batch.answer_mask(scores.shape[1])
        return mutual_loss(
            scores / self.calibration[learner],
            teacher_scores / self.calibration[teacher],
            answers,
            split=self.split,
            temperature=self.temperature,
            allowed=self.allowed(teacher, scores.device),
        )


@dataclass(frozen=True)
class MutualObjective:
    """Both encoders learn from facts and, where ``lam`` is above 0, from each other. The losses share one backward
    pass; stop-gradients keep them apart.

    Attributes:
        learning: of each side.
        exchange: how beliefs are compared.
    """

    learning: dict[Side, Learning]
    exchange: Exchange

    def __call__(self, pair: nn.Module, batch: QueryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its parts, as :func:`tenfold.training.fit` wants them."""
        assert isinstance(pair, Pair)
        logged: dict[str, Tensor] = {}
        scores: dict[Side, Tensor] = {}
        total: Tensor | None = None
        for side in SIDES:
            encoder = pair.side(side)
            encoder.begin_step(batch.answers)
            with encoder.encoded():
                if self.exchange.lam > 0 or self.learning[side].needs_all_scores(encoder, len(batch.heads)):
                    scores[side] = encoder.score_all(batch.heads, batch.relations)
                loss = self.learning[side].supervised(encoder, batch, scores.get(side))
            logged[f"{side}-supervised"] = loss
            total = loss if total is None else total + loss
        assert total is not None
        if self.exchange.lam > 0:
            for side in SIDES:
                loss = self.exchange.mutual(side, scores[side], scores[other(side)], batch)
                logged[f"{side}-mutual"] = loss
                total = total + self.exchange.lam * loss
            # Both may agree on what is wrong: agreement that rises while the validation MRR falls is the alarm.
            same = scores["structure"].argmax(1) == scores["text"].argmax(1)
            logged["agreement"] = same.float().mean()
        return total, logged


class PhaseObjective:
    """An E-step or M-step: one encoder learns from facts, injected facts and the other, which is frozen.

    Args:
        learner: which side learns.
        learning: how it learns from facts.
        exchange: how beliefs are compared.
        mu: weight of the KL on unobserved queries.
        reverse: ``KL(learner || teacher)`` on them.
    """

    def __init__(self, learner: Side, learning: Learning, exchange: Exchange, mu: float, reverse: bool = False) -> None:
        self.learner, self.teacher = learner, other(learner)
        self.learning, self.exchange, self.mu, self.reverse = learning, exchange, mu, reverse

    def __call__(self, pair: nn.Module, batch: QueryBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch and its parts, as :func:`tenfold.training.fit` wants them."""
        assert isinstance(pair, Pair)
        encoder, observed = pair.side(self.learner), len(batch.heads)
        heads, relations = batch.heads, batch.relations
        unobserved = batch.unobserved if self.mu > 0 else None
        if unobserved is not None:
            heads = torch.cat([heads, unobserved.heads])
            relations = torch.cat([relations, unobserved.relations])
        encoder.begin_step(batch.answers)
        logged: dict[str, Tensor] = {}
        with encoder.encoded():
            scores = None
            exchanged = self.exchange.lam > 0 or unobserved is not None
            if exchanged or self.learning.needs_all_scores(encoder, observed):
                scores = encoder.score_all(heads, relations)
            loss = self.learning.supervised(encoder, batch, None if scores is None else scores[:observed])
        logged["supervised"] = loss
        if self.exchange.lam > 0:
            assert scores is not None
            mutual = self.exchange.mutual(self.learner, scores[:observed], self._ask(pair, batch), batch)
            logged["mutual"] = mutual
            loss = loss + self.exchange.lam * mutual
        if unobserved is not None:
            assert scores is not None
            divergence = bucket_kl(
                scores[observed:] / self.exchange.calibration[self.learner],
                unobserved,
                temperature=self.exchange.temperature,
                reverse=self.reverse,
                allowed=self.exchange.allowed(self.teacher, scores.device),
            )
            logged["unobserved"] = divergence
            loss = loss + self.mu * divergence
        return loss, logged

    @torch.no_grad()
    def _ask(self, pair: Pair, batch: QueryBatch) -> Tensor:
        teacher = pair.side(self.teacher)
        teacher.eval()  # the trainer puts the whole pair into training mode
        if not teacher._kept:
            teacher.keep_encoding(teacher.encode())  # for the phase: the teacher is frozen
        return teacher.score_all(batch.heads, batch.relations)

    def forget(self, pair: Pair) -> None:
        """Drop what was kept of the frozen teacher; after the phase."""
        pair.side(self.teacher).drop_encoding()
