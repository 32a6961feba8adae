"""Graph fusion (VEM2L): the experiment, read from top to bottom.

A sparse graph, two encoders trained alone, the arms (mutual learning, EM rounds, controls of equal length, ablations),
the two-encoder ensemble as upper reference, ranks on the test split after all choices, delivery of one encoder. Every
function can be called on its own.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tenfold
from tenfold.cost import count_flops, count_parameters, measure_latency
from tenfold.parallel import rank, wait_for_all_ranks
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb, write_atomically
from tenfold.systems.graph_fusion.calibration import fit_temperature
from tenfold.systems.graph_fusion.comparison import claims_of, plots_of, summarise, tables_of
from tenfold.systems.graph_fusion.data import load_graph
from tenfold.systems.graph_fusion.encoders import build_encoder
from tenfold.systems.graph_fusion.ensemble import fit_ensemble
from tenfold.systems.graph_fusion.fusion import Fusion
from tenfold.systems.graph_fusion.graph import KnowledgeGraph
from tenfold.systems.graph_fusion.metrics import Ranks, evaluate_encoder, summarise_groups, summarise_ranks
from tenfold.systems.graph_fusion.objectives import SIDES, Learning, Side
from tenfold.systems.graph_fusion.progress import Round
from tenfold.systems.graph_fusion.scorers import QueryScorer, check_scorer
from tenfold.systems.graph_fusion.settings import ABLATIONS, ARMS, PRESETS, Config, arms_of, find_arm, options_of
from tenfold.systems.graph_fusion.student import Student

__all__ = ["ABLATIONS", "ARMS", "PRESETS", "Config", "deliver", "make_encoder", "measure", "run", "train_arm"]


def run(config: Config, run: Run) -> Results:
    """Train all arms over all seeds, compare them, deliver one encoder.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    graph = load_graph(**asdict(config.data))
    for side in SIDES:  # what cannot be built or asked fails now, before anything is written
        check_scorer(make_encoder(config, graph, side), side)
    outcomes: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    ensembles = []
    for seed in range(config.seed, config.seed + config.seeds):
        for name in arms:
            outcome = run.step(
                f"{name}/seed{seed}",
                lambda folder: train_arm(config, graph, name, seed, folder, run),  # noqa: B023
            )
            outcomes[name].append(outcome)
        ensembles.append(
            run.step(f"ensemble/seed{seed}", lambda folder: measure_ensemble(config, graph, seed, folder, run))  # noqa: B023
        )
    delivered = run.step("delivery", lambda _: deliver(config, graph, outcomes, run))
    reciprocal = read_reciprocal(run, [*arms, "ensemble"], config)
    notes = [
        *graph.notes,
        "Epochs, temperatures and the ensemble's weight are chosen on the validation split; the test split is ranked "
        "once per arm, after all choices. Ranks are filtered by all three splits, in both directions, ties realistic.",
    ]
    if config.fusion.gate == "validated":
        notes.append(
            "VALIDATED GATE: injected triples were ordered by hit rates on validation facts; validation numbers are no "
            "longer independent of training."
        )
    if delivered["note"]:
        notes.append(delivered["note"])
    if config.fusion.transductive_queries:
        notes.insert(0, "TRANSDUCTIVE: test queries took part in training as unobserved queries; not a fair result.")
    return Results(
        system="graph-fusion",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
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
        notes=notes,
    )


def make_encoder(config: Config, graph: KnowledgeGraph, side: Side) -> QueryScorer:
    """The encoder of a side, as the settings say; with the weights they name."""
    options = config.structure if side == "structure" else config.text
    encoder = build_encoder(options.name, graph, options.arguments, options.factory)
    if options.weights is not None:
        from tenfold.systems.graph_fusion.checkpoints import load_encoder_weights

        load_encoder_weights(encoder, options.weights, graph)
    return encoder


def learning_of(config: Config) -> dict[Side, Learning]:
    """How each side learns from facts."""
    made: dict[Side, Learning] = {}
    for side, options in (("structure", config.structure), ("text", config.text)):
        made[side] = Learning(  # type: ignore[index]
            loss=options.loss,
            negatives=options.negatives,
            smoothing=options.smoothing,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
        )
    return made


def make_fusion(config: Config, graph: KnowledgeGraph, arm: str, seed: int, folder: Path, run: Run) -> Fusion:
    """Both encoders with the first weights of a seed, and the schedule of an arm."""
    torch.manual_seed(seed)
    step = f"{arm}/seed{seed}"
    return Fusion(
        graph,
        make_encoder(config, graph, "structure"),
        make_encoder(config, graph, "text"),
        options=options_of(config, arm),
        learning=learning_of(config),
        seed=seed,
        folder=folder,
        trainer=config.trainer,
        progress=lambda phase, epoch, epochs, note: run.progress(step, epoch, epochs, f"{phase}: {note}"),
    )


def train_arm(config: Config, graph: KnowledgeGraph, name: str, seed: int, folder: Path, run: Run) -> dict[str, Any]:
    """Train one arm with one seed from where its parent ended, and rank the test split with the best weights."""
    arm = find_arm(name)
    fusion = make_fusion(config, graph, name, seed, folder, run)
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
    fusion = make_fusion(config, graph, "alone", seed, folder, run)
    fusion.load(run.folder / f"steps/alone/seed{seed}/state.pt")
    fusion.use_best()
    ensemble = fit_ensemble(fusion.pair.structure, fusion.pair.text, graph)
    ranks = evaluate_encoder(ensemble, graph, "test", what="ensemble")
    if rank() == 0:
        write_ranks(folder / "ranks.npz", {"structure": ranks})
    return {"weight": ensemble.weight, "groups": summarise_groups(ranks, graph)}


def write_ranks(path: Path, ranks: dict[Side, Ranks]) -> None:
    """Every query with its rank and ties, from which all tables can be computed again."""
    arrays: dict[str, np.ndarray] = {}
    for side, found in ranks.items():
        arrays |= {
            f"{side}_triples": found.triples.numpy(),
            f"{side}_predicts_head": found.predicts_head.numpy(),
            f"{side}_rank_realistic": found.realistic().numpy(),
            f"{side}_ties": found.ties.numpy(),
            f"{side}_reciprocal": found.by_triple().numpy(),
        }
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_reciprocal(run: Run, arms: list[str], config: Config) -> dict[str, dict[Side, dict[int, Tensor]]]:
    """Mean reciprocal rank of each test triple, for each arm, side and seed."""
    found: dict[str, dict[Side, dict[int, Tensor]]] = {}
    for arm in arms:
        found[arm] = {side: {} for side in SIDES}
        for seed in range(config.seed, config.seed + config.seeds):
            with np.load(run.folder / f"steps/{arm}/seed{seed}/ranks.npz", allow_pickle=False) as arrays:
                for side in SIDES:
                    if f"{side}_reciprocal" in arrays:
                        found[arm][side][seed] = torch.from_numpy(arrays[f"{side}_reciprocal"])
    return found


def write_provenance(path: Path, rounds: list[Round], graph: KnowledgeGraph) -> None:
    """``densified.tsv``: every injected triple with its round, confidence, weight and source."""
    lines = ["head\trelation\ttail\tround\tconfidence\tweight\tsource\n"]
    for made in rounds:
        injected = made.injected
        for (h, r, t), confidence, weight, cross in zip(
            injected.triples.tolist(),
            injected.confidence.tolist(),
            injected.weights.tolist(),
            injected.cross.tolist(),
            strict=True,
        ):
            ids = f"{graph.entities[h]}\t{graph.relations[r]}\t{graph.entities[t]}"
            lines.append(f"{ids}\t{made.number}\t{confidence:.4f}\t{weight:.4f}\t{'cross' if cross else 'residual'}\n")
    write_atomically(path, "".join(lines))


def deliver(
    config: Config, graph: KnowledgeGraph, outcomes: dict[str, list[dict[str, Any]]], run: Run
) -> dict[str, Any]:
    """Keep both fused encoders of the first seed as students, and one of them as the run's model; check what loads."""
    folder = run.folder / f"steps/vem2l/seed{config.seed}"
    fusion = make_fusion(config, graph, "vem2l", config.seed, folder, run)
    fusion.load(folder / "state.pt")
    fusion.use_best()
    injected = injected_of_last_round(folder / "densified.tsv", graph)
    probe = torch.cat([graph.test[:64, :2], graph.test[:64, [2, 1]] + torch.tensor([0, graph.num_relations])])
    costs: dict[Side, dict[str, float]] = {}
    made: dict[Side, Student] = {}
    difference = 0.0
    for side in SIDES:
        options = config.structure if side == "structure" else config.text
        encoder = fusion.pair.side(side).cpu().eval()
        made[side] = Student.of(
            encoder, graph, injected, builder=options.name, arguments=options.arguments, factory=options.factory
        )
        if rank() == 0:
            made[side].save(run.folder / "students" / side, side=side)
        wait_for_all_ranks()
        loaded = Student.load(run.folder / "students" / side, factory=options.factory)
        costs[side] = serving_cost(loaded)
        again = loaded.score(probe[:, 0], probe[:, 1])
        difference = max(difference, float((again - made[side].score(probe[:, 0], probe[:, 1])).abs().max()))
    validation: dict[Side, float] = {s: outcomes["vem2l"][0]["sides"][s]["validation_mrr"] for s in SIDES}
    chosen, note = choose_student(config, validation, costs)
    if rank() == 0:
        made[chosen].save(run.folder, side=chosen)
    wait_for_all_ranks()
    examples = _examples(Student.load(run.folder, factory=config.structure.factory or config.text.factory), graph)
    return {
        "side": chosen,
        "note": note,
        "params": int(costs[chosen]["params"]),
        "flops": costs[chosen]["flops"],
        "costs": costs,
        "loaded_difference": difference,
        "examples": examples,
    }


def serving_cost(student: Student) -> dict[str, float]:
    """Parameters, memory of weights and candidate vectors, FLOPs and time of one query, candidate vectors kept."""
    scorer, query = student.scorer, (torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    held = sum(value.numel() * value.element_size() for value in scorer.state_dict().values())
    with scorer.encoded(), torch.no_grad():
        if scorer.has_vectors and (vectors := scorer.candidate_vectors()).data_ptr() not in {
            value.data_ptr() for value in scorer.state_dict().values()
        }:
            held += vectors.numel() * vectors.element_size()
        flops = count_flops(scorer.score_all, *query, modules=[scorer])
        latency = measure_latency(lambda: student.score(*query))
    return {
        "params": count_parameters(scorer),
        "flops": flops,
        "latency_ms": latency.median_ms,
        "memory_mb": held / 2**20,
    }


def choose_student(
    config: Config, validation: Mapping[Side, float], costs: Mapping[Side, Mapping[str, float]]
) -> tuple[Side, str]:
    """Which encoder is delivered, and a note where no encoder keeps the limits of ``deliver: auto``.

    Args:
        config: names the encoder, or the limits.
        validation: MRR of each.
        costs: see :func:`serving_cost`.
    """
    if config.deliver != "auto":
        return config.deliver, ""
    limits = {"memory_mb": config.memory_limit_mb, "latency_ms": config.latency_limit_ms}

    def excess(side: Side) -> float:
        return max([costs[side][name] / limit for name, limit in limits.items() if limit > 0], default=0.0)

    fitting = [side for side in SIDES if excess(side) <= 1]
    if fitting:
        return max(fitting, key=lambda side: validation[side]), ""
    least = min(SIDES, key=excess)
    return least, (
        f"No encoder keeps the limits of {limits['memory_mb']:g} MB and {limits['latency_ms']:g} ms; {least}, which "
        f"exceeds them least ({excess(least):.1f} times), is delivered."
    )


def injected_of_last_round(path: Path, graph: KnowledgeGraph) -> Tensor:
    """``(m, 3)`` what ``densified.tsv`` holds of the last round."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    last = max((int(row[3]) for row in rows), default=0)
    entity = {key: number for number, key in enumerate(graph.entities)}
    relation = {key: number for number, key in enumerate(graph.relations)}
    triples = [(entity[row[0]], relation[row[1]], entity[row[2]]) for row in rows if int(row[3]) == last]
    return torch.tensor(triples, dtype=torch.int64).reshape(-1, 3)


def _examples(student: Student, graph: KnowledgeGraph, count: int = 6) -> list[list[Any]]:
    """A few test queries with the delivered encoder's first answer; for the page."""
    rows = []
    known = graph.known("test")
    step = max(1, len(graph.test) // count)
    for h, r, t in graph.test[::step][:count].tolist():
        entity, relation = graph.entities[h], graph.relations[r]
        scores = student.score(torch.tensor([h]), torch.tensor([r]))[0]
        _, answers, _ = graph.known("train", "valid").of(graph.known("train", "valid").find(torch.tensor([[h, r]])))
        scores[answers] = -torch.inf
        best = int(scores.argmax())
        right = bool(known.contains(torch.tensor([[h, r, best]]))[0])
        rows.append(
            [entity, relation, graph.entities[best], "yes" if right else "", 1 + int((scores > scores[t]).sum())]
        )
    return rows
