"""What a run delivers: both fused encoders as students, and one of them as the run's model."""

from collections.abc import Mapping
from typing import Any

import torch

from tenfold.cost import count_flops, count_parameters, measure_latency
from tenfold.run import Run
from tenfold.systems.graph_fusion.experiment.from_settings import make_fusion
from tenfold.systems.graph_fusion.experiment.settings import Config
from tenfold.systems.graph_fusion.experiment.step_files import injected_of_last_round
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Side
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.serve.student import Student
from tenfold.training.parallel import rank, wait_for_all_ranks


def deliver(config: Config, graph: KnowledgeGraph, run: Run) -> dict[str, Any]:
    """Keep both fused encoders of the first seed as students, and one of them as the run's model; check what loads.

    Args:
        config: the settings.
        graph: the graph.
        run: holds the finished step of ``vem2l`` with the first seed.
    """
    folder = run.folder / f"steps/vem2l/seed{config.seed}"
    fusion = make_fusion(config, graph, "vem2l", config.seed, folder)
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
    validation: dict[Side, float] = {side: fusion.best[side].mrr for side in SIDES}
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
        costs: see `serving_cost`.
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
