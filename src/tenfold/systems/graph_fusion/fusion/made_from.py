"""What a fusion's folder was made from: phases that are done count for the same fusion only."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tenfold.errors import UserError
from tenfold.files import make_folder, read_json, write_atomically
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Learning, Pair, Side
from tenfold.systems.graph_fusion.fusion.schedule import Schedule
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.training.parallel import rank, wait_for_all_ranks


def claim_folder(
    folder: Path, graph: KnowledgeGraph, schedule: Schedule, learning: Mapping[Side, Learning], seed: int, pair: Pair
) -> None:
    """Write ``made-from.json``, or compare with the one that is there.

    First weights are not compared: a phase that is done, or begun, has brought its own.

    Args:
        folder: of the fusion.
        graph: its ids, names, training and validation triples count.
        schedule: of the fusion.
        learning: of each side.
        seed: of the fusion.
        pair: the encoders' kinds and the shapes of their parameters count.

    Raises:
        UserError: the folder holds a fusion of another graph, schedule, seed, learning or encoders.
    """
    content = hashlib.sha256(repr((graph.entities, graph.relations, graph.names)).encode())
    for triples in (graph.train, graph.valid):
        content.update(triples.numpy().tobytes())
    encoders = {}
    for side in SIDES:
        shapes = [str(list(parameter.shape)) for parameter in pair.side(side).parameters()]
        encoders[side] = [type(pair.side(side)).__name__, *shapes]
    made_from = {
        "graph": content.hexdigest(),
        "schedule": dataclasses.asdict(schedule),
        "learning": {side: dataclasses.asdict(one) for side, one in learning.items()},
        "seed": seed,
        "encoders": encoders,
    }
    path, text = folder / "made-from.json", json.dumps(made_from)
    if path.exists():
        found = read_json(path)
        known = found if isinstance(found, dict) else {}
        other = [name for name, value in json.loads(text).items() if known.get(name) != value]
        if other:
            raise UserError(f"{folder} holds a fusion with another {other[0]}: name another folder, or remove it")
    elif rank() == 0:
        write_atomically(make_folder(folder) / path.name, text)
    wait_for_all_ranks()
