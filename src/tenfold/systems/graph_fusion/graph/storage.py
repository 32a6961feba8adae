"""A graph on disk beside a model: ``entities.tsv``, ``relations.tsv``, ``triples.safetensors``."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import printable, write_atomically
from tenfold.systems.graph_fusion.graph.columns import check_ids
from tenfold.systems.graph_fusion.graph.knowledge_graph import SPLITS, KnowledgeGraph
from tenfold.systems.graph_fusion.graph.tables import read_text


def save_graph(graph: KnowledgeGraph, folder: str | Path, **more: Tensor) -> None:
    """Write a graph; what thinning removed, too, for it was given and is not new.

    Args:
        graph: the graph.
        folder: made if need be.
        **more: further tensors to keep with the triples, such as injected ones.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entities = zip(graph.entities, graph.names, graph.descriptions, strict=True)
    write_atomically(folder / "entities.tsv", "".join(_line(*row) for row in entities))
    relations = zip(graph.relations, graph.relation_texts, strict=True)
    write_atomically(folder / "relations.tsv", "".join(_line(*row) for row in relations))
    tensors: dict[str, Tensor] = {split: graph.split(split).contiguous() for split in SPLITS}
    tensors["hidden"] = graph.hidden.contiguous()
    write_atomically(folder / "triples.safetensors", save(tensors | {k: v.contiguous() for k, v in more.items()}))


def read_graph(folder: str | Path) -> tuple[KnowledgeGraph, dict[str, Tensor]]:
    """What `save_graph` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        tensors = load((folder / "triples.safetensors").read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder}/triples.safetensors: {' '.join(str(error).split())[:200]}") from error
    entities = _rows(folder / "entities.tsv", 3)
    relations = _rows(folder / "relations.tsv", 2)
    if any(split not in tensors for split in SPLITS):
        raise UserError(f"{folder}/triples.safetensors lacks a split")
    check_ids((row[0] for row in entities), "entity")
    check_ids((row[0] for row in relations), "relation")
    graph = KnowledgeGraph(
        entities=tuple(row[0] for row in entities),
        relations=tuple(row[0] for row in relations),
        names=tuple(row[1] for row in entities),
        descriptions=tuple(row[2] for row in entities),
        relation_texts=tuple(row[1] for row in relations),
        name=folder.name,
        train=tensors.pop("train"),
        valid=tensors.pop("valid"),
        test=tensors.pop("test"),
        hidden=tensors.pop("hidden", empty_triples()),
    )
    for name, triples in {"hidden": graph.hidden, **tensors}.items():
        whole = triples.dtype == torch.int64 and triples.ndim == 2 and triples.shape[1] == 3
        sizes = torch.tensor([graph.num_entities, graph.num_relations, graph.num_entities])
        if not whole or bool(((triples < 0) | (triples >= sizes)).any()):
            raise UserError(f"{folder}/triples.safetensors is damaged: {printable(name)} are no triples of this graph")
    return graph, tensors


_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))


def _line(*cells: str) -> str:
    for plain, escaped in _ESCAPES:
        cells = tuple(cell.replace(plain, escaped) for cell in cells)
    return "\t".join(cells) + "\n"


def _rows(path: Path, width: int) -> list[list[str]]:
    rows = [[_unescape(cell) for cell in line.split("\t")] for line in read_text(path).split("\n") if line]
    if any(len(row) != width for row in rows):
        raise UserError(f"{path} is damaged: a line has not {width} columns")
    return rows


def _unescape(cell: str) -> str:
    if "\\" not in cell:
        return cell
    plain = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r"}
    pieces, position = [], 0
    while position < len(cell):
        if cell[position] == "\\" and position + 1 < len(cell):
            pieces.append(plain.get(cell[position + 1], cell[position + 1]))
            position += 2
        else:
            pieces.append(cell[position])
            position += 1
    return "".join(pieces)


def empty_triples() -> Tensor:
    """``(0, 3)``."""
    return torch.empty(0, 3, dtype=torch.int64)
