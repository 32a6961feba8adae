"""SimKGC's JSON of predictions: written from a student, and read to recompute the metrics of anyone's run."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.files import read_json, write_atomically
from tenfold.systems.graph_fusion.graph.knowledge_graph import Split
from tenfold.systems.graph_fusion.ranking.ranks import Ranks, rank_queries
from tenfold.systems.graph_fusion.serve.student import Student


@torch.no_grad()
def write_predictions(
    student: Student,
    path: str | Path,
    *,
    split: Split = "valid",
    direction: Literal["tail", "head"] = "tail",
    k: int = 3,
) -> Ranks:
    """Write ``[{head, relation, tail, pred_tail, pred_score, topk_score_info, rank, correct}, ...]`` of one direction.

    As in SimKGC's files, backward queries have their ends exchanged and ``inverse`` before the relation.

    Args:
        student: the encoder.
        path: the file.
        split: what is predicted.
        direction: which end.
        k: answers in ``topk_score_info``.
    """
    graph = student.graph
    triples = graph.split(split)
    if direction == "head":
        triples = torch.stack([triples[:, 2], triples[:, 1] + graph.num_relations, triples[:, 0]], 1)
    ranks = rank_queries(student.scorer, triples, graph.known())
    realistic = ranks.realistic()
    known = graph.known()
    rows: list[dict[str, Any]] = []
    for start in range(0, len(triples), 512):
        part = triples[start : start + 512]
        scores = student.score(part[:, 0], part[:, 1])
        owner, answers, _ = known.of(known.find(part[:, :2]))
        others = answers != part[owner, 2]
        scores[owner[others], answers[others]] = -torch.inf
        best = scores.topk(min(k, graph.num_entities), 1)
        for place, (h, r, t) in enumerate(part.tolist()):
            names = [graph.names[entity] for entity in best.indices[place].tolist()]
            values = [round(value, 4) for value in best.values[place].tolist()]
            relation = graph.relation_texts[r % graph.num_relations]
            rank = float(realistic[start + place])
            rows.append(
                {
                    "head": graph.names[h],
                    "relation": f"inverse {relation}" if direction == "head" else relation,
                    "tail": graph.names[t],
                    "pred_tail": names[0],
                    "pred_score": values[0],
                    "topk_score_info": json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False),
                    "rank": int(rank) if rank.is_integer() else rank,
                    "correct": int(best.indices[place, 0]) == t,
                }
            )
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    return ranks


def metrics_of_predictions(tails: str | Path, heads: str | Path) -> dict[str, dict[str, float]]:
    """MRR and Hits of prediction files, each direction and both.

    Args:
        tails: predictions of tails.
        heads: predictions of heads.

    Raises:
        UserError: a file is not such a list, or a rank is missing or below 1.
    """
    ranks = {"tail": _ranks_in(tails), "head": _ranks_in(heads)}
    ranks["both"] = torch.cat([ranks["tail"], ranks["head"]])
    return {
        name: {
            "queries": float(len(values)),
            "mrr": float((1 / values).mean()),
            **{f"hits@{k}": float((values <= k).double().mean()) for k in (1, 3, 10)},
            "mean_rank": float(values.mean()),
        }
        for name, values in ranks.items()
    }


def _ranks_in(path: str | Path) -> torch.Tensor:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} is not a list of predictions")
    ranks = [row.get("rank") if isinstance(row, dict) else None for row in content]
    wrong = [number for number, rank in enumerate(ranks) if not isinstance(rank, int | float) or not rank >= 1]
    if wrong:
        raise UserError(f"{path}: prediction {wrong[0]} has no rank of at least 1")
    return torch.tensor([float(rank) for rank in ranks if rank is not None], dtype=torch.float64)
