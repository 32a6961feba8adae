"""What one training step minimises: both encoders on observed queries, or one that learns from the other, frozen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.fusion.sampled_losses import (
    in_batch_loss,
    sampled_softmax_loss,
    self_adversarial_loss,
)
from tenfold.systems.graph_fusion.fusion.tiled_losses import (
    Vectors,
    needs_tiles,
    score_or_vectors,
    tiled_bucket_kl,
    tiled_mutual_loss,
    tiled_softmax,
)
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch, UnobservedBatch
from tenfold.systems.graph_fusion.method import SplitKind, bucket_kl, full_scores_loss, mutual_loss

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
        alpha: adversarial temperature of ``nssa``.
        smoothing: label smoothing.
        learning_rate: of Adam.
        weight_decay: decoupled.
    """

    loss: SupervisedKind = "softmax"
    negatives: int = 256
    alpha: float = 1.0
    smoothing: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float = 0.0

    @property
    def needs_scores(self) -> bool:
        """Whether the supervised loss is computed from scores of all entities."""
        return self.loss in ("softmax", "1vsall", "bce")

    def in_tiles(self, encoder: QueryScorer, queries: int) -> bool:
        """Whether those scores exceed the memory budget: then a softmax is computed in tiles, exactly."""
        return self.loss == "softmax" and needs_tiles(queries, encoder)

    def supervised(self, encoder: QueryScorer, batch: QueryBatch, scores: Tensor | Vectors | None) -> Tensor:
        """The encoder's own loss, else that of the settings.

        Args:
            encoder: the encoder.
            batch: queries and answers.
            scores: ``(B, N)``, or the vectors they are made from, where they were computed.

        Raises:
            UserError: a loss that has no tiles needs them.
        """
        own = encoder.supervised_loss(batch)
        if own is not None:
            return own
        if self.loss == "nssa":
            return self_adversarial_loss(encoder, batch, self.negatives, self.alpha)
        if self.loss == "infonce":
            return in_batch_loss(encoder, batch)
        if self.loss == "sampled":
            return sampled_softmax_loss(encoder, batch, self.negatives)
        if isinstance(scores, Vectors):
            if self.loss != "softmax":
                raise UserError(
                    f"the loss {self.loss!r} over {encoder.num_entities:,} entities exceeds the memory budget: use "
                    "'softmax', which is taken in tiles, or 'sampled', or lower fusion.batch_size"
                )
            return tiled_softmax(scores, batch, self.smoothing)
        assert scores is not None
        return full_scores_loss(scores, batch, self.loss, self.smoothing)


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

    def mutual(
        self, learner: Side, scores: Tensor | Vectors, teacher_scores: Tensor | Vectors, batch: QueryBatch
    ) -> Tensor:
        """M2L's loss of the learner.

        Raises:
            UserError: tiles are needed, and the split has none.
        """
        teacher = other(learner)
        if isinstance(scores, Vectors) and isinstance(teacher_scores, Vectors):
            if self.split != "full":
                raise UserError(
                    f"fusion.mutual_split {self.split!r} needs all scores of a batch, which exceed the memory budget: "
                    "use 'full', or lower fusion.batch_size"
                )
            return tiled_mutual_loss(
                scores.over(self.calibration[learner]),
                teacher_scores.over(self.calibration[teacher]),
                temperature=self.temperature,
                allowed=self.allowed(teacher, batch.heads.device),
            )
        assert isinstance(scores, Tensor) and isinstance(teacher_scores, Tensor)
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
        """The loss of a batch and its parts, as `tenfold.training.fit` wants them."""
        assert isinstance(pair, Pair)
        logged: dict[str, Tensor] = {}
        scores: dict[Side, Tensor | Vectors] = {}
        total: Tensor | None = None
        exchanged, queries = self.exchange.lam > 0, len(batch.heads)
        tiled = exchanged and needs_tiles(queries, pair.structure, pair.text)
        for side in SIDES:
            encoder, learning = pair.side(side), self.learning[side]
            encoder.begin_step(batch.answers)
            with encoder.encoded():
                if exchanged or learning.needs_scores:
                    scores[side] = score_or_vectors(
                        encoder, batch.heads, batch.relations, tiled or learning.in_tiles(encoder, queries)
                    )
                loss = learning.supervised(encoder, batch, scores.get(side))
            logged[f"{side}-supervised"] = loss
            total = loss if total is None else total + loss
        assert total is not None
        if exchanged:
            for side in SIDES:
                loss = self.exchange.mutual(side, scores[side], scores[other(side)], batch)
                logged[f"{side}-mutual"] = loss
                total = total + self.exchange.lam * loss
            first, second = scores["structure"], scores["text"]
            if isinstance(first, Tensor) and isinstance(second, Tensor):
                # Both may agree on what is wrong: agreement that rises while the validation MRR falls is the alarm.
                logged["agreement"] = (first.argmax(1) == second.argmax(1)).float().mean()
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
        """The loss of a batch and its parts, as `tenfold.training.fit` wants them."""
        assert isinstance(pair, Pair)
        encoder, observed = pair.side(self.learner), len(batch.heads)
        heads, relations = batch.heads, batch.relations
        unobserved = batch.unobserved if self.mu > 0 else None
        if unobserved is not None:
            heads = torch.cat([heads, unobserved.heads])
            relations = torch.cat([relations, unobserved.relations])
        encoder.begin_step(batch.answers)
        logged: dict[str, Tensor] = {}
        exchanged = self.exchange.lam > 0
        tiled = self._in_tiles(pair, len(heads), observed)
        scores: Tensor | Vectors | None = None
        with encoder.encoded():
            if exchanged or unobserved is not None or self.learning.needs_scores:
                scores = score_or_vectors(encoder, heads, relations, tiled)
            loss = self.learning.supervised(encoder, batch, None if scores is None else scores[:observed])
        logged["supervised"] = loss
        if exchanged:
            assert scores is not None
            mutual = self.exchange.mutual(self.learner, scores[:observed], self._ask(pair, batch, tiled), batch)
            logged["mutual"] = mutual
            loss = loss + self.exchange.lam * mutual
        if unobserved is not None:
            assert scores is not None
            divergence = self._unobserved(scores[observed:], unobserved)
            logged["unobserved"] = divergence
            loss = loss + self.mu * divergence
        return loss, logged

    def _in_tiles(self, pair: Pair, queries: int, observed: int) -> bool:
        encoder = pair.side(self.learner)
        if self.exchange.lam > 0:
            return needs_tiles(queries, encoder, pair.side(self.teacher))
        if self.mu > 0 and queries > observed:
            return needs_tiles(queries, encoder)
        return self.learning.in_tiles(encoder, observed)

    def _unobserved(self, scores: Tensor | Vectors, unobserved: UnobservedBatch) -> Tensor:
        """The KL on unobserved queries."""
        temperature, tau = self.exchange.calibration[self.learner], self.exchange.temperature
        allowed = self.exchange.allowed(self.teacher, unobserved.heads.device)
        if isinstance(scores, Vectors):
            return tiled_bucket_kl(
                scores.over(temperature), unobserved, temperature=tau, reverse=self.reverse, allowed=allowed
            )
        return bucket_kl(scores / temperature, unobserved, temperature=tau, reverse=self.reverse, allowed=allowed)

    @torch.no_grad()
    def _ask(self, pair: Pair, batch: QueryBatch, tiled: bool) -> Tensor | Vectors:
        teacher = pair.side(self.teacher)
        teacher.eval()  # the trainer puts the whole pair into training mode
        if not teacher._kept:
            teacher.keep_encoding(teacher.encode())  # for the phase: the teacher is frozen
        return score_or_vectors(teacher, batch.heads, batch.relations, tiled)

    def forget(self, pair: Pair) -> None:
        """Drop what was kept of the frozen teacher; after the phase."""
        pair.side(self.teacher).drop_encoding()


def warm_schedule(warm_up: int, total: int, decay: bool) -> Callable[[int], float]:
    """Factor of the learning rate at a step of the warm start: a linear rise, then constant or a linear fall to 0.

    As transformers' linear schedule with warm-up, which SimKGC uses: the first step, number 0, has the factor 0.
    """

    def at(step: int) -> float:
        if step < warm_up:
            return step / warm_up
        return max(total - step, 0) / max(total - warm_up, 1) if decay else 1.0

    return at
