"""What the settings ask for: encoders, how they learn, the schedule of an arm."""

from collections.abc import Callable
from pathlib import Path

import torch

from tenfold.systems.graph_fusion.encoders.build_encoder import build_encoder
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.experiment.settings import Config, FusionOptions, options_of
from tenfold.systems.graph_fusion.fusion.fusion import Fusion
from tenfold.systems.graph_fusion.fusion.objectives import Learning, Side
from tenfold.systems.graph_fusion.fusion.schedule import (
    Beliefs,
    Injection,
    Mutual,
    Rounds,
    Schedule,
    UnobservedSampling,
    WarmStart,
)
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph

OnProgress = Callable[[int, int, str], None]


def make_encoder(config: Config, graph: KnowledgeGraph, side: Side) -> QueryScorer:
    """The encoder of a side, as the settings say; with the weights they name."""
    options = config.structure if side == "structure" else config.text
    encoder = build_encoder(options.name, graph, options.arguments, options.factory)
    if options.weights is not None:
        from tenfold.systems.graph_fusion.encoders.official_checkpoints import load_encoder_weights

        load_encoder_weights(encoder, options.weights, graph)
    return encoder


def learning_of(config: Config) -> dict[Side, Learning]:
    """How each side learns from facts."""
    made: dict[Side, Learning] = {}
    for side, options in (("structure", config.structure), ("text", config.text)):
        made[side] = Learning(  # type: ignore[index]
            loss=options.loss,
            negatives=options.negatives,
            alpha=options.alpha,
            smoothing=options.smoothing,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )
    return made


def schedule_of(options: FusionOptions) -> Schedule:
    """The schedule that flat options ask for."""
    return Schedule(
        warm=WarmStart(options.warm_epochs, options.warm_up_steps, options.warm_decay),
        mutual=Mutual(options.mutual_epochs, options.patience, options.lam, options.mutual_split),
        rounds=Rounds(
            number=options.rounds,
            epochs=options.phase_epochs,
            learning_rate=options.em_learning_rate,
            mu_e=options.mu_e,
            mu_m=options.mu_m,
            reverse=options.e_step == "reverse",
            posterior="text" if options.roles == "text-posterior" else "structure",
            model_first=options.order == "model",
        ),
        queries=UnobservedSampling(options.cross, options.residual, options.max_queries, options.transductive_queries),
        beliefs=Beliefs(options.top_k, options.renormalize, options.leftover),
        injection=Injection(
            share=options.share,
            nu=options.nu,
            gate=options.gate,
            threshold=options.threshold,
            agreement=options.agreement,
            weighted=options.weighted,
            sample=options.sample,
        ),
        batch_size=options.batch_size,
        temperature=options.temperature,
        calibrate=options.calibrate,
        validation_limit=options.validation_limit,
    )


def make_fusion(
    config: Config, graph: KnowledgeGraph, arm: str, seed: int, folder: Path, on_progress: OnProgress | None = None
) -> Fusion:
    """Both encoders with the first weights of a seed, and the schedule of an arm."""
    torch.manual_seed(seed)
    return Fusion(
        graph,
        make_encoder(config, graph, "structure"),
        make_encoder(config, graph, "text"),
        schedule=schedule_of(options_of(config, arm)),
        learning=learning_of(config),
        seed=seed,
        folder=folder,
        trainer=config.trainer,
        on_progress=on_progress,
    )
