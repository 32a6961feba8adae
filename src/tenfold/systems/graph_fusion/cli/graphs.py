"""Describe a graph, and write a thinner one."""

from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.graph_fusion.graph.columns import FourthColumn, Order
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.load_graph import load_graph
from tenfold.systems.graph_fusion.graph.splits import leakage
from tenfold.systems.graph_fusion.graph.subsets import sparsify as thin


def sparsify(
    data: str,
    out: str,
    *,
    fraction: float = 0.1,
    root: str | None = None,
    order: Order | None = None,
    header: bool | None = None,
    fourth_column: FourthColumn = "refuse",
    duplicates: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
    keep_unseen: bool = False,
) -> dict[str, Any]:
    """Write a thinner graph: train, valid and test files, and the removed triples as hidden.txt.

    Args:
        data: the graph, see the setting data.name.
        out: folder to write, which must not exist.
        fraction: share of the training triples to keep.
        root: folder of the graph.
        order: columns of its files where their layout does not declare them.
        header: whether the first row of CSV and TSV files names the columns.
        fourth_column: refuse one, ignore it, or truth: rows with 1 are facts, with 0 or -1 none.
        duplicates: refuse repeated triples and second texts of an id, or drop them.
        seed: of the choice.
        keep_unseen: keep validation and test triples whose entities lost all their training triples.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} already exists; name a new folder")
    given = _load(data, root=root, order=order, header=header, fourth_column=fourth_column, duplicates=duplicates)
    graph = thin(given, fraction, seed=seed, keep_unseen=keep_unseen)
    folder.mkdir(parents=True)
    parts = {"train": graph.train, "valid": graph.valid, "test": graph.test, "hidden": graph.hidden}
    for name, triples in parts.items():
        rows = (f"{graph.entities[h]}\t{graph.relations[r]}\t{graph.entities[t]}\n" for h, r, t in triples.tolist())
        write_atomically(folder / f"{name}.txt", "".join(rows))
    for name, keys, texts in (
        ("entity2text.txt", graph.entities, graph.names),
        ("relation2text.txt", graph.relations, graph.relation_texts),
    ):
        pairs = zip(keys, texts, strict=True)
        write_atomically(folder / name, "".join(f"{key}\t{' '.join(text.split())}\n" for key, text in pairs))
    return {"folder": str(folder), **{name: len(triples) for name, triples in parts.items()}}


def _load(data: str, **options: Any) -> KnowledgeGraph:
    """The graph; messages name the options of a verb, not those of a run."""
    try:
        return load_graph(data, missing_texts="id", **options)
    except UserError as error:
        raise UserError(str(error).replace("--data.", "--")) from error


def describe(
    data: str,
    *,
    root: str | None = None,
    order: Order | None = None,
    header: bool | None = None,
    fourth_column: FourthColumn = "refuse",
    texts: str | None = None,
    language: str = "en",
    duplicates: Literal["refuse", "drop"] = "refuse",
) -> dict[str, Any]:
    """Say what a graph holds: sizes, degrees, texts, unseen entities, leaks between its splits.

    Args:
        data: the graph, see the setting data.name.
        root: folder of the graph.
        order: columns of its files where their layout does not declare them.
        header: whether the first row of CSV and TSV files names the columns.
        fourth_column: refuse one, ignore it, or truth: rows with 1 are facts, with 0 or -1 none.
        texts: file of "id TAB text", or a folder with text files, where they do not lie beside the triples.
        language: of labels in N-Triples and CoDEx.
        duplicates: refuse repeated triples and second texts of an id, or drop them.
    """
    graph = _load(
        data,
        root=root,
        order=order,
        header=header,
        fourth_column=fourth_column,
        texts=texts,
        language=language,
        duplicates=duplicates,
    )
    degrees = graph.degrees()
    seen = graph.seen()
    return {
        "data": graph.name,
        "entities": graph.num_entities,
        "relations": graph.num_relations,
        "triples": {name: len(graph.split(name)) for name in ("train", "valid", "test")},
        "median_degree": float(degrees.median()),
        "entities_with_one_edge": round(float((degrees == 1).double().mean()), 4),
        "unseen_entities": int((~seen).sum()),
        "relations_without_training_triple": graph.num_relations - len(graph.train[:, 1].unique()),
        "test_triples_with_unseen": int((~seen[graph.test[:, 0]] | ~seen[graph.test[:, 2]]).sum()),
        "names_that_repeat": len(graph.names) - len(set(graph.names)),
        "leakage": leakage(graph),
        "notes": list(graph.notes),
    }
