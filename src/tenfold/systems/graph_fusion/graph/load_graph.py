"""Knowledge graphs in the layouts of the field's benchmarks, of PyKEEN's wheel, and in a user's own files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold.data import find_data
from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.columns import (
    FourthColumn,
    Order,
    Rules,
    Triple,
    TriplesRead,
    check_ids,
    choose_order,
    to_triples,
)
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.n_triples import read_n_triples
from tenfold.systems.graph_fusion.graph.splits import leakage, split_triples
from tenfold.systems.graph_fusion.graph.subsets import drop_unseen, induced_subset, sparsify
from tenfold.systems.graph_fusion.graph.tables import Place, find_file, open_place, read_json_file, read_table
from tenfold.systems.graph_fusion.graph.texts import (
    TextRules,
    Texts,
    read_text_file,
    read_texts,
    split_wordnet,
    text_for,
)

BUNDLED = ("umls", "nations", "kinships")
"""Graphs inside PyKEEN's wheel: nothing is downloaded."""

_LAYOUTS: dict[str, tuple[str, str, str, Order | None]] = {
    # layout: train, valid, test, declared order; None: told by the data
    "kg-bert": ("train.tsv", "dev.tsv", "test.tsv", "hrt"),
    "multihop": ("train.triples", "dev.triples", "test.triples", "htr"),
    "wikidata5m": (
        "wikidata5m_transductive_train.txt",
        "wikidata5m_transductive_valid.txt",
        "wikidata5m_transductive_test.txt",
        "hrt",
    ),
    "wikidata5m-inductive": (
        "wikidata5m_inductive_train.txt",
        "wikidata5m_inductive_valid.txt",
        "wikidata5m_inductive_test.txt",
        "hrt",
    ),
    "plain": ("train.txt", "valid.txt", "test.txt", None),
    "tables": ("train.csv", "valid.csv", "test.csv", None),
    "parquet": ("train.parquet", "valid.parquet", "test.parquet", None),
}


@dataclass
class _Read:
    """What files hold, ids still as text."""

    train: list[Triple]
    valid: list[Triple]
    test: list[Triple]
    texts: Texts = field(default_factory=Texts)
    notes: list[str] = field(default_factory=list)
    single: bool = False


def load_graph(
    name: str = "umls",
    *,
    root: str | None = None,
    order: Order | None = None,
    header: bool | None = None,
    fourth_column: FourthColumn = "refuse",
    texts: str | None = None,
    language: str = "en",
    long_texts: bool = False,
    missing_texts: Literal["refuse", "id"] = "refuse",
    duplicates: Literal["refuse", "drop"] = "refuse",
    truth: str | None = None,
    entities: int = 0,
    fraction: float = 1.0,
    unseen: Literal["keep", "drop"] = "keep",
    seed: int = 0,
) -> KnowledgeGraph:
    """Read a graph, thin it and cut it as asked.

    Args:
        name: ``umls``, ``nations`` or ``kinships`` (inside PyKEEN's wheel); else a folder, an archive or one file of
            triples (TSV, CSV, Parquet, N-Triples), below ``root``.
        root: where ``name`` lies; ``TENFOLD_DATA``, or its ``knowledge-graphs``, where ``None``.
        order: columns of the files where the layout does not declare them; told by the data where ``None``.
        header: whether the first row of CSV and TSV files names the columns; where ``None``, it does if it names a
            head, a relation and a tail.
        fourth_column: what a fourth column means: ``refuse`` it, ``ignore`` it, or ``truth``: rows with 1 are facts,
            those with 0 or -1 are left out. Without a word, 1 and -1 are taken so, as WN11 has them.
        texts: a file of ``id TAB text``, or a folder with text files, below ``root``, where they do not lie beside the
            triples.
        language: of labels in N-Triples and in CoDEx.
        long_texts: read ``entity2textlong.txt``.
        missing_texts: what to do where text files miss entities: ``refuse``, or take the words of the ``id``.
        duplicates: what to do with repeated triples of a split, and with a second text of an id: ``refuse``, or
            ``drop`` all but the first.
        truth: the full graph that this one was thinned from, below ``root``: its further triples become ``hidden``.
        entities: if above 0, the part induced by so many entities.
        fraction: share of the training triples to keep.
        unseen: ``keep`` entities without a training triple (and report them apart), or ``drop`` them.
        seed: of all that is random here.

    Raises:
        UserError: files are missing, damaged, contradictory, or leave a split empty.
    """
    rules = Rules(order, header, fourth_column)
    wanted = TextRules(long=long_texts, language=language, repeated=duplicates)
    read = _read(find_graph(name, root), rules, wanted)
    if texts is not None:
        _add_texts(read.texts, _below(texts, root), wanted)
    graph = _number(name, read, missing_texts, duplicates)
    if read.single:
        everything = graph.train
        train, valid, test, notes = split_triples(everything, graph.num_entities, seed=seed)
        graph = replace(graph, train=train, valid=valid, test=test, notes=(*graph.notes, *notes))
    if truth is not None:
        graph = _with_truth(graph, truth, root)
    if entities:
        graph = induced_subset(graph, entities, seed=seed)
    if fraction != 1:
        graph = sparsify(graph, fraction, seed=seed)
    if unseen == "drop":
        graph = drop_unseen(graph)
    return replace(graph, notes=(*graph.notes, *_warnings(graph)))


def find_graph(name: str, root: str | None = None) -> Place:
    """Where a named graph lies.

    Raises:
        UserError: PyKEEN is not installed, or there is nothing of that name.
    """
    if name in BUNDLED and root is None:
        found = find_spec("pykeen")
        if found is None or not found.submodule_search_locations:
            raise UserError(f"the graph {name!r} is inside the package pykeen: pip install 'tenfold[graphs]'")
        return Path(found.submodule_search_locations[0]) / "datasets" / name
    return open_place(_below(name, root))


def _below(name: str, root: str | None) -> Path:
    if Path(name).is_absolute():
        return Path(name)
    folder = find_data(root)
    tried = [folder / name, folder / "knowledge-graphs" / name]
    for path in tried:
        if path.exists():
            return path
    raise UserError(
        f"{folder} holds no graph {name!r}: put its files (train, valid and test, or one file of triples) there; "
        "layouts and where each benchmark is published are in the guide's page on graph fusion"
    )


def _read(place: Place, rules: Rules, texts: TextRules) -> _Read:
    if place.is_file():
        return _read_single(place, rules, texts)
    if find_file(place, "train_tasks.json"):
        return _read_nell_one(place, texts)
    for base in (place, place / "data"):
        codex = base / "triples"
        if codex.is_dir():
            sets = sorted(child.name for child in codex.iterdir() if child.is_dir())
            some = f": name one, such as {base.name}/triples/{sets[0]}" if sets else ", but all are empty"
            raise UserError(f"{place} holds several graphs{some}")
    for layout, (train, valid, test, declared) in _LAYOUTS.items():
        paths = [find_file(place, train), find_file(place, valid), find_file(place, test)]
        if paths[0] is None and layout == "multihop" and find_file(place, "raw.kb"):
            paths[0] = find_file(place, "raw.kb")
        if paths[0] is None:
            continue
        if paths[1] is None or paths[2] is None:
            missing = valid if paths[1] is None else test
            raise UserError(f"{place} holds {paths[0].name} but no {missing}: a graph needs all three splits")
        found = [path for path in paths if path is not None]
        return _read_splits(found, layout, replace(rules, order=rules.order or declared), place, texts)
    raise UserError(
        f"{place} holds no graph in a known layout: expected train.tsv/dev.tsv/test.tsv, train.txt/valid.txt/test.txt, "
        "train.triples/dev.triples/test.triples, train_tasks.json, or one file of triples"
    )


def _read_splits(paths: Sequence[Place], layout: str, rules: Rules, place: Place, texts: TextRules) -> _Read:
    tables = [read_table(paths[0], rules.header)]
    tables += [read_table(path, tables[0].header is not None) for path in paths[1:]]
    places, notes = choose_order(tables[0], rules.order)
    # A split whose header differs from that of the training split has places of its own.
    own = [places if table.header == tables[0].header else choose_order(table, None)[0] for table in tables]
    read = [to_triples(table, at, rules.fourth) for table, at in zip(tables, own, strict=True)]
    splits = [part.triples for part in read]
    notes += [note for part in read for note in part.notes]
    if layout == "multihop":
        held = {*splits[1], *splits[2]}
        before = len(splits[0])
        splits[0] = [triple for triple in splits[0] if triple not in held]
        if len(splits[0]) < before:
            notes.append(f"{before - len(splits[0]):,} training triples repeated held-out ones and were left out.")
    mapping = find_file(place, "entity_idx.json"), find_file(place, "rel_idx.json")
    if mapping[0] is not None and mapping[1] is not None:
        splits = _named_by_index(splits, mapping[0], mapping[1])
    return _Read(splits[0], splits[1], splits[2], read_texts(place, texts), notes)


def _named_by_index(splits: list[list[Triple]], entities: Place, relations: Place) -> list[list[Triple]]:
    """CN-100K's archive may hold numbers, whose names are in two JSON files; files that already hold names stay."""
    names = {str(number): name for name, number in read_json_file(entities).items()}
    kinds = {str(number): name for name, number in read_json_file(relations).items()}
    if not all(triple[0] in names and triple[1] in kinds for triple in splits[0][:100]):
        return splits
    try:
        return [[(names[h], kinds[r], names[t]) for h, r, t in part] for part in splits]
    except KeyError as error:
        raise UserError(f"{entities} and {relations.name} name no number {error}") from error


def _read_nell_one(place: Place, texts: TextRules) -> _Read:
    """NELL-One: the background graph with the few-shot tasks' triples as training, validation and test."""
    parts = []
    for name in ("train_tasks.json", "dev_tasks.json", "test_tasks.json"):
        path = find_file(place, name)
        if path is None:
            raise UserError(f"{place} holds no {name}: NELL-One needs all three task files")
        content = read_json_file(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} is not a file of tasks: it must map relations to triples")
        parts.append(_task_triples(path, content))
    background, notes = find_file(place, "path_graph"), []
    if background is not None:
        known = set(parts[0])
        found = to_triples(read_table(background, False), (0, 1, 2))
        parts[0] += [triple for triple in found.triples if triple not in known]
        notes = found.notes
    return _Read(parts[0], parts[1], parts[2], read_texts(place, texts), notes)


def _task_triples(path: Place, tasks: dict[str, Any]) -> list[Triple]:
    """Triples of a file of tasks, ids as text."""
    for relation, triples in tasks.items():
        for triple in triples if isinstance(triples, list) else [None]:
            ids = triple if isinstance(triple, list) else []
            if len(ids) != 3 or not all(isinstance(key, str) and key.strip() for key in ids):
                raise UserError(f"{path}: the task {relation!r} holds {triple!r}, not [head, relation, tail] as text")
    return [(h, r, t) for triples in tasks.values() for h, r, t in triples]


def _read_single(path: Place, rules: Rules, wanted: TextRules) -> _Read:
    texts = Texts()
    notes: list[str] = []
    if path.name.removesuffix(".gz").endswith((".nt", ".ntriples")):
        found = read_n_triples(path, wanted.language)
        relations = {relation for _, relation, _ in found.triples}
        texts.names = {key: text for key, text in found.labels.items() if key not in relations}
        texts.relations = {key: text for key, text in found.labels.items() if key in relations}
        read = TriplesRead(found.triples, found.notes(wanted.language))
    else:
        table = read_table(path, rules.header)
        places, notes = choose_order(table, rules.order)
        read = to_triples(table, places, rules.fourth)
    if not read.triples:
        raise UserError(f"{path} holds no triple")
    return _Read(read.triples, [], [], texts, [*notes, *read.notes], single=True)


def _add_texts(texts: Texts, path: Path, wanted: TextRules) -> None:
    place = open_place(path)
    if place.is_file():
        texts.take("names", read_text_file(place), place, wanted, over=True)
        return
    found = read_texts(place, wanted)
    if not found.sources:
        raise UserError(f"{path} holds no text file of a known name, such as entity2text.txt or labels.tsv")
    for own, others in ((texts.names, found.names), (texts.descriptions, found.descriptions)):
        own.update(others)
    texts.relations.update(found.relations)
    texts.sources += found.sources
    texts.notes += found.notes


def _number(
    name: str, read: _Read, missing_texts: Literal["refuse", "id"], duplicates: Literal["refuse", "drop"]
) -> KnowledgeGraph:
    notes = list(read.notes)
    parts: dict[str, list[Triple]] = {"train": read.train, "valid": read.valid, "test": read.test}
    for split, triples in parts.items():
        unique = dict.fromkeys(triples)
        if len(unique) < len(triples):
            repeated = len(triples) - len(unique)
            if duplicates == "refuse":
                seen: set[Triple] = set()
                first = next(triple for triple in triples if triple in seen or seen.add(triple))  # type: ignore[func-returns-value]
                raise UserError(
                    f"{name}: {repeated:,} triples of {split} are repeated, such as {' '.join(first)}; drop the copies "
                    "with --data.duplicates drop"
                )
            notes.append(f"{repeated:,} repeated triples of {split} were dropped.")
            parts[split] = list(unique)
    everything = [triple for triples in parts.values() for triple in triples]
    entities = tuple(sorted({end for h, _, t in everything for end in (h, t)}))
    relations = tuple(sorted({r for _, r, _ in everything}))
    check_ids(entities, "entity")
    check_ids(relations, "relation")
    texts = read.texts
    if any(relation == "_hypernym" for relation in relations):
        split_wordnet(texts)
    notes += texts.notes
    if texts.names:
        missing = [key for key in entities if key not in texts.names]
        if missing and missing_texts == "refuse":
            raise UserError(
                f"{name}: the texts ({', '.join(texts.sources) or 'labels'}) miss {len(missing):,} of "
                f"{len(entities):,} entities, such as {missing[0]!r}; add them, or use the ids' words with "
                "--data.missing_texts id"
            )
        if missing:
            notes.append(f"{len(missing):,} entities have no text; the words of their ids stand in.")
    else:
        notes.append("No entity texts: the words of the ids stand in.")
    entity_number = {key: number for number, key in enumerate(entities)}
    relation_number = {key: number for number, key in enumerate(relations)}

    def numbers(triples: list[Triple]) -> Tensor:
        rows = [(entity_number[h], relation_number[r], entity_number[t]) for h, r, t in triples]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

    train = numbers(parts["train"])
    return KnowledgeGraph(
        entities=entities,
        relations=relations,
        train=train,
        # A graph in one file is split next; until then the three names hold the same triples.
        valid=train if read.single else numbers(parts["valid"]),
        test=train if read.single else numbers(parts["test"]),
        names=tuple(text_for(key, texts.names, "entity") for key in entities),
        descriptions=tuple(texts.descriptions.get(key, "") for key in entities),
        relation_texts=tuple(text_for(key, texts.relations, "relation") for key in relations),
        name=Path(name).name,
        notes=tuple(notes),
    )


def _with_truth(graph: KnowledgeGraph, truth: str, root: str | None) -> KnowledgeGraph:
    """Add what the full graph knows beyond this one as ``hidden``; ids that this graph has not are left out."""
    read = _read(find_graph(truth, root), Rules(), TextRules(repeated="drop"))
    entity_number = {key: number for number, key in enumerate(graph.entities)}
    relation_number = {key: number for number, key in enumerate(graph.relations)}
    rows = [
        (entity_number[h], relation_number[r], entity_number[t])
        for h, r, t in [*read.train, *read.valid, *read.test]
        if h in entity_number and t in entity_number and r in relation_number
    ]
    full = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).unique(dim=0)
    hidden = full[~graph.known().contains(full)]
    if not len(hidden):
        raise UserError(f"{truth} knows no triple that {graph.name} has not: it is not the full graph of it")
    return replace(
        graph,
        hidden=torch.cat([graph.hidden, hidden]),
        notes=(*graph.notes, f"{len(hidden):,} further true triples are known from {truth}; no model sees them."),
    )


def _warnings(graph: KnowledgeGraph) -> list[str]:
    notes = []
    found = leakage(graph)
    if found["repeated"]:
        notes.append(f"LEAK: {found['repeated']:,} test triples are also training triples.")
    if found["inverted"] > 0.05 * len(graph.test):
        notes.append(
            f"{found['inverted'] / len(graph.test):.0%} of the test triples have their ends joined in training in the "
            "other direction, as inverse relations do."
        )
    unlearnt = ~torch.isin(torch.arange(graph.num_relations), graph.train[:, 1])
    if bool(unlearnt.any()):
        names = ", ".join(graph.relations[number] for number in unlearnt.nonzero().flatten()[:3].tolist())
        rows = sum(int(unlearnt[part[:, 1]].sum()) for part in (graph.valid, graph.test))
        notes.append(
            f"{int(unlearnt.sum()):,} relations have no training triple, so that nothing can be learnt of them: {names}"
            f"{' ...' if int(unlearnt.sum()) > 3 else ''}; {rows:,} validation and test triples ask for them."
        )
    seen = graph.seen()
    if (lost := int((~seen[graph.test[:, 0]] | ~seen[graph.test[:, 2]]).sum())) > 0:
        notes.append(f"{lost:,} test triples have an entity that no training triple mentions; they are reported apart.")
    return notes
