"""Files of an arm's step: every rank of the test split, and every injected triple."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import atomic_path, first_line, read_text, write_atomically
from tenfold.run import Run
from tenfold.systems.graph_fusion.experiment.settings import Config
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Side
from tenfold.systems.graph_fusion.fusion.records import Round
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.ranking.ranks import Ranks


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
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_reciprocal(run: Run, arms: list[str], config: Config) -> dict[str, dict[Side, dict[int, Tensor]]]:
    """Mean reciprocal rank of each test triple, for each arm, side and seed."""
    found: dict[str, dict[Side, dict[int, Tensor]]] = {}
    for arm in arms:
        found[arm] = {side: {} for side in SIDES}
        for seed in range(config.seed, config.seed + config.seeds):
            path = run.folder / f"steps/{arm}/seed{seed}/ranks.npz"
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    for side in SIDES:
                        if f"{side}_reciprocal" in arrays:
                            found[arm][side][seed] = torch.from_numpy(arrays[f"{side}_reciprocal"])
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                way_on = f"remove the folder {path.parent} and resume: the step is then done anew"
                raise UserError(f"cannot read {path}: {first_line(error)}; {way_on}") from error
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


def injected_of_last_round(path: Path, graph: KnowledgeGraph) -> Tensor:
    """``(m, 3)`` what ``densified.tsv`` holds of the last round."""
    entity = {key: number for number, key in enumerate(graph.entities)}
    relation = {key: number for number, key in enumerate(graph.relations)}
    rounds: dict[int, list[tuple[int, int, int]]] = {}
    try:
        for line in read_text(path).splitlines()[1:]:
            head, kind, tail, number, *_ = line.split("\t")
            rounds.setdefault(int(number), []).append((entity[head], relation[kind], entity[tail]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: remove the folder {path.parent} and resume") from error
    return torch.tensor(rounds[max(rounds)] if rounds else [], dtype=torch.int64).reshape(-1, 3)
