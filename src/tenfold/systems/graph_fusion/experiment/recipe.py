"""Graph fusion (VEM2L): the experiment, read from top to bottom.

A sparse graph, two encoders trained alone, the arms (mutual learning, EM rounds, controls of equal length, ablations),
the two-encoder ensemble as upper reference, ranks on the test split after all choices, delivery of one encoder. Every
function can be called on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import tenfold
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, check_scorer
from tenfold.systems.graph_fusion.experiment.comparison import claims_of, plots_of, summarise, summary_of, tables_of
from tenfold.systems.graph_fusion.experiment.delivery import deliver
from tenfold.systems.graph_fusion.experiment.from_settings import make_encoder, make_fusion
from tenfold.systems.graph_fusion.experiment.settings import (
    ABLATIONS,
    ARMS,
    PRESETS,
    Config,
    arms_of,
    data_of,
    find_arm,
)
from tenfold.systems.graph_fusion.experiment.step_files import read_reciprocal, write_provenance, write_ranks
from tenfold.systems.graph_fusion.fusion.objectives import SIDES
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.load_graph import load_graph
from tenfold.systems.graph_fusion.ranking.calibration import fit_temperature
from tenfold.systems.graph_fusion.ranking.ensemble import fit_ensemble
from tenfold.systems.graph_fusion.ranking.ranks import Ranks, evaluate_encoder
from tenfold.systems.graph_fusion.ranking.summaries import summarise_groups, summarise_ranks
from tenfold.systems.graph_fusion.serve.saved_settings import check_arguments
from tenfold.training.parallel import rank
from tenfold.workers import Step, Work, do_steps

__all__ = ["ABLATIONS", "ARMS", "PRESETS", "Config", "deliver", "make_encoder", "measure", "run", "train_arm"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, compare them, deliver one encoder.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms, seeds = arms_of(config), range(config.seed, config.seed + config.seeds)
    graph, notes = read_data(config)
    for side in SIDES:  # what cannot be built, asked or saved fails now, before anything is written
        options = config.structure if side == "structure" else config.text
        check_arguments(options.name, options.arguments, f"{side}.arguments")
        scorer = make_encoder(config, graph, side)
        check_scorer(scorer, side)
        notes += scorer.notes()
    for note in notes:
        run.say(note)
    run.say(
        f"Will train {len(arms)} arms with {config.seeds} seeds on {len(graph.train):,} triples: {', '.join(arms)}."
    )
    # On a GPU, and with several devices, the processes are the trainer's.
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    workers = 1 if alone else config.workers
    found = do_steps(run, phases_of(arms, seeds), partial(open_place, config), workers=workers)
    outcomes = {name: [found[f"{name}/seed{seed}"] for seed in seeds] for name in arms}
    ensembles = [found[f"ensemble/seed{seed}"] for seed in seeds]
    delivered = found["delivery"]
    reciprocal = read_reciprocal(run, [*arms, "ensemble"], config)
    return Results(
        system="graph-fusion",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes, ensembles, delivered),
        claims=claims_of(outcomes, ensembles, reciprocal, delivered),
        metrics=summarise(outcomes, ensembles),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=graph.name,
            entities=graph.num_entities,
            relations=graph.num_relations,
            train_triples=len(graph.train),
            test_triples=len(graph.test),
        ),
        plots=plots_of(outcomes, ensembles, bool(len(graph.hidden))),
        tables=tables_of(outcomes, ensembles, delivered),
        notes=[*notes, *notes_of(config, graph, delivered)],
    )


def read_data(config: Config) -> tuple[KnowledgeGraph, list[str]]:
    """The graph of a run, and what a reader must know of it: what was thinned, cut, split or left out."""
    options, notes = data_of(config)
    graph = load_graph(**asdict(options))
    return graph, [*notes, *graph.notes]


def notes_of(config: Config, graph: KnowledgeGraph, delivered: Mapping[str, Any]) -> list[str]:
    """What a reader must know to judge the numbers, beside the data."""
    notes = [
        "Epochs, temperatures and the ensemble's weight are chosen on the validation split; the test split is ranked "
        "once per arm, after all choices. Ranks are filtered by all three splits, in both directions, ties realistic.",
    ]
    limit = config.fusion.validation_limit
    if 0 < limit < len(graph.valid):
        notes.append(
            f"After an epoch {limit:,} of the {len(graph.valid):,} validation triples are ranked, drawn at random, "
            "always the same (fusion.validation_limit)."
        )
    if config.fusion.max_queries:
        notes.append(f"A round takes at most {config.fusion.max_queries:,} unobserved queries (fusion.max_queries).")
    if config.fusion.gate == "validated":
        notes.append(
            "VALIDATED GATE: injected triples were ordered by hit rates on validation facts; validation numbers are no "
            "longer independent of training."
        )
    if delivered["note"]:
        notes.append(delivered["note"])
    if config.fusion.transductive_queries:
        notes.insert(0, "TRANSDUCTIVE: test queries took part in training as unobserved queries; not a fair result.")
    return notes


def phases_of(arms: Sequence[str], seeds: Sequence[int]) -> list[list[Step]]:
    """The steps, those of a phase independent of each other: arms after their parents, then delivery."""
    depth: dict[str, int] = {}
    for name in arms:  # parents come first
        parent = find_arm(name).parent
        depth[name] = 0 if parent is None else depth[parent] + 1
    phases: list[list[Step]] = [[] for _ in range(max(2, *(level + 1 for level in depth.values())))]
    for name in arms:
        phases[depth[name]] += [Step(f"{name}/seed{seed}", (name, seed)) for seed in seeds]
    phases[1] += [Step(f"ensemble/seed{seed}", ("ensemble", seed)) for seed in seeds]
    return [*phases, [Step("delivery", ("delivery", seeds[0]))]]


def open_place(config: Config) -> Work:
    """What every step needs, made once per process."""
    graph, _ = read_data(config)

    def work(step: Step, folder: Path, run: Run) -> dict[str, Any]:
        name, seed = step.arguments
        if name == "delivery":
            return deliver(config, graph, run)
        if name == "ensemble":
            return measure_ensemble(config, graph, seed, folder, run)
        return train_arm(config, graph, name, seed, folder, run)

    return work


def train_arm(config: Config, graph: KnowledgeGraph, name: str, seed: int, folder: Path, run: Run) -> dict[str, Any]:
    """Train one arm with one seed from where its parent ended, and rank the test split with the best weights."""
    arm = find_arm(name)

    def note(epoch: int, epochs: int, text: str) -> None:
        run.progress(f"{name}/seed{seed}", epoch, epochs, text)

    fusion = make_fusion(config, graph, name, seed, folder, note)
    if arm.parent is None:
        fusion.warm_start()
    else:
        fusion.load(run.folder / f"steps/{arm.parent}/seed{seed}/state.pt")
    fusion.run(mutual=arm.mutual, rounds=arm.rounds)
    fusion.save(folder / "state.pt")
    fusion.use_best()
    ranks = {side: evaluate_encoder(fusion.pair.side(side), graph, "test", what=side) for side in SIDES}
    if rank() == 0:
        write_ranks(folder / "ranks.npz", ranks)
        write_provenance(folder / "densified.tsv", fusion.rounds, graph)
    return {
        "sides": {
            side: measure(fusion.pair.side(side), graph, ranks[side])
            | {"validation_mrr": fusion.best[side].mrr, "best_stage": fusion.best[side].stage}
            for side in SIDES
        },
        "rounds": [
            {
                "injected": len(made.injected),
                "cross_injected": int(made.injected.cross.sum()),
                "residual_queries": made.unobserved[0],
                "cross_queries": made.unobserved[1],
                "true_share": made.true_share,
                "precision": made.precision,
            }
            for made in fusion.rounds
        ],
        "history": fusion.history,
        "steps": fusion.steps,
    }


def measure(encoder: QueryScorer, graph: KnowledgeGraph, ranks: Ranks) -> dict[str, Any]:
    """Numbers of an encoder's ranks on the test split: all groups, and MRR with the hidden truth filtered, too."""
    measured: dict[str, Any] = {
        "groups": summarise_groups(ranks, graph),
        "temperature": fit_temperature(encoder, graph),
    }
    if len(graph.hidden):
        full = evaluate_encoder(encoder, graph, "test", filter_hidden=True)
        measured["full_truth"] = summarise_ranks(full)
    return measured


def measure_ensemble(config: Config, graph: KnowledgeGraph, seed: int, folder: Path, run: Run) -> dict[str, Any]:
    """The two-encoder ensemble of ``alone``, its weight from validation: the upper reference, at twice the cost."""
    fusion = make_fusion(config, graph, "alone", seed, folder)
    fusion.load(run.folder / f"steps/alone/seed{seed}/state.pt")
    fusion.use_best()
    ensemble = fit_ensemble(fusion.pair.structure, fusion.pair.text, graph)
    ranks = evaluate_encoder(ensemble, graph, "test", what="ensemble")
    if rank() == 0:
        write_ranks(folder / "ranks.npz", {"structure": ranks})
    return {"weight": ensemble.weight, "groups": summarise_groups(ranks, graph)}
