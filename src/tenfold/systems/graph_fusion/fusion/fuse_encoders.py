"""``fuse_encoders``: the whole schedule in one call, and its result."""

from dataclasses import dataclass, field
from pathlib import Path

from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.fusion.fusion import Fusion
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Learning, Side
from tenfold.systems.graph_fusion.fusion.records import Round
from tenfold.systems.graph_fusion.fusion.schedule import Schedule
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.serve.student import Student
from tenfold.training.options import TrainerOptions


@dataclass
class FusionResult:
    """Two fused encoders, each of which serves alone.

    Attributes:
        fusion: the schedule's final state; ``fusion.pair`` holds the best weights.
        validation: best validation MRR of each side.
        rounds: what each EM round injected, with its provenance.
    """

    fusion: Fusion
    validation: dict[Side, float]
    rounds: list[Round] = field(default_factory=list)

    def student(self, side: Side | None = None) -> Student:
        """One encoder, ready to predict and to be saved; the better one on validation by default.

        Args:
            side: ``structure`` or ``text``.
        """
        better: Side = max(SIDES, key=self.validation.__getitem__)
        chosen = better if side is None else side
        encoder = self.fusion.pair.side(chosen)
        injected = [made.injected.triples for made in self.rounds[-1:]]
        return Student.of(encoder, self.fusion.graph, injected=injected[0] if injected else None)


def fuse_encoders(
    structure: QueryScorer,
    text: QueryScorer,
    graph: KnowledgeGraph,
    *,
    folder: str | Path,
    schedule: Schedule | None = None,
    learning: dict[Side, Learning] | None = None,
    seed: int = 0,
    trainer: TrainerOptions | None = None,
) -> FusionResult:
    """Let a structure and a text encoder of one graph teach each other (VEM2L): warm start, M2L, EM rounds.

    Args:
        structure: any `QueryScorer`, fresh or trained (then set ``Schedule(warm=WarmStart(epochs=0))``).
        text: any other one.
        graph: the graph.
        folder: checkpoints and teacher files; a killed fusion goes on from there.
        schedule: what is done, how long and how strongly.
        learning: how each side learns from facts.
        seed: of all that is random.
        trainer: where it runs.

    Returns:
        both encoders at their best validation MRR; ``result.student()`` serves one of them alone.

    Raises:
        UserError: an encoder does not keep the contract: a wrong shape, or scores that are not finite.
    """
    fusion = Fusion(
        graph,
        structure,
        text,
        schedule=schedule,
        learning=learning,
        seed=seed,
        folder=folder,
        trainer=trainer,
    )
    fusion.warm_start()
    fusion.run()
    fusion.use_best()
    return FusionResult(fusion, {side: best.mrr for side, best in fusion.best.items()}, fusion.rounds)
