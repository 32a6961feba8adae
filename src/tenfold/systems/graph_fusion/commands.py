"""What the command line does with a finished run or a model folder of graph fusion."""

import json
from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.export import load_manifest
from tenfold.run import read_json, write_atomically
from tenfold.systems.graph_fusion.data import load_graph
from tenfold.systems.graph_fusion.files import Order
from tenfold.systems.graph_fusion.graph import leakage
from tenfold.systems.graph_fusion.graph import sparsify as thin
from tenfold.systems.graph_fusion.metrics import evaluate_encoder, summarise_groups
from tenfold.systems.graph_fusion.student import Student, as_rows

_COUNTER = "test-evaluations.json"


def evaluate(
    run: str, *, split: Literal["valid", "test"] = "valid", again: bool = False, factory: str | None = None
) -> dict[str, Any]:
    """Rank a split again with a run's encoder: all groups, both directions, ties realistic.

    Args:
        run: folder of the run, or of one of its students.
        split: the test split was ranked by the run itself, once; it is not ranked again unasked.
        again: rank the test split all the same; the folder keeps count.
        factory: of an encoder of your own, see Student.load.
    """
    student = Student.load(run, factory)
    if split == "test":
        counter = Path(run) / _COUNTER
        times = int(read_json(counter)["times"]) if counter.exists() else 1
        if not again:
            raise UserError(
                f"the test split of {run} was already evaluated ({times} time{'s'[: times > 1]}): choices made after "
                "another look would be tuned to it; use --split valid, or insist with --again true"
            )
        write_atomically(counter, json.dumps({"times": times + 1}))
    groups = summarise_groups(evaluate_encoder(student.scorer, student.graph, split), student.graph)
    rounded = {name: {k: round(v, 6) for k, v in numbers.items()} for name, numbers in groups.items()}
    return {"split": split, "side": load_manifest(run).extra.get("side"), **rounded}


def export(
    run: str,
    *,
    to: Literal["onnx", "safetensors"] = "safetensors",
    side: Literal["structure", "text"] | None = None,
    out: str | None = None,
    factory: str | None = None,
) -> dict[str, Any]:
    """Write a run's encoder for deployment: safetensors with all that rebuilds it, or ONNX that scores all entities.

    Args:
        run: folder of the run.
        to: safetensors: a folder that Student.load reads; onnx: (heads, relations) to scores, checked against PyTorch.
        side: which student; the delivered one where not given.
        out: folder to write; RUN/export where not given.
        factory: of an encoder of your own.
    """
    source = Path(run) / "students" / side if side else Path(run)
    student = Student.load(source, factory)
    folder = Path(out) if out else Path(run) / "export"
    if to == "safetensors":
        student.save(folder, **({"side": side} if side else {}))
        return {"student": str(folder)}
    from tenfold.systems.graph_fusion.onnx import export_scores

    folder.mkdir(parents=True, exist_ok=True)
    made = export_scores(student.scorer, folder / "model.onnx")
    return {"onnx": str(made.path), "largest_difference": made.max_difference}


def import_official(
    checkpoint: str,
    *,
    data: str = "umls",
    root: str | None = None,
    order: Order | None = None,
    entities: str | None = None,
    relations: str | None = None,
    encoder: Literal["transe", "distmult", "complex", "rotate"] | None = None,
    text_model: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Turn a trained encoder of RotatE, HAKE, CompGCN, LibKGE, PyKEEN (state dict) or SimKGC into a model folder.

    Args:
        checkpoint: the file; nothing in it is executed.
        data: the graph that it was trained on.
        root: folder of the graph.
        order: columns of the graph's files where their layout does not declare them.
        entities: file with the checkpoint's entity ids in its own order, an id or "number TAB id" a line; sorted ids
            where not given.
        relations: the same for relations.
        encoder: what a PyKEEN state dict holds, which names no model.
        text_model: for SimKGC, the local transformers folder that it started from.
        out: folder to write; the checkpoint's name without its suffixes where not given.
    """
    from tenfold.systems.graph_fusion.checkpoints import import_checkpoint

    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    graph = load_graph(data, root=root, order=order, missing_texts="id")
    found = import_checkpoint(checkpoint, graph, entities, relations, encoder=encoder, text_model=text_model)
    student = Student.of(found.scorer, graph, builder=found.builder, arguments=found.arguments)
    student.save(folder, side="text" if found.source == "SimKGC" else "structure", source=found.source)
    return {"model": str(folder), "encoder": found.builder, "source": found.source, "arguments": found.arguments}


def predict(
    run: str,
    inputs: list[str],
    *,
    k: int = 10,
    exclude_known: bool = True,
    new_entity: bool = False,
    factory: str | None = None,
) -> str:
    """Answer queries "entity, relation" (or "?, relation, entity"): one JSON line per query.

    Args:
        run: folder of the run, or of one of its students.
        inputs: queries: ENTITY TAB RELATION, or ? TAB RELATION TAB ENTITY for heads; a comma may stand for the tab;
            or files with one query per line.
        k: answers per query.
        exclude_known: leave out answers that the graph holds.
        new_entity: the entity is a text and not in the graph (text student).
        factory: of an encoder of your own, see Student.load.
    """
    student = Student.load(run, factory)
    lines = []
    for text in _queries(inputs):
        entity, relation, direction = _parse_query(text)
        if new_entity:
            answers = student.predict_text(entity, relation, direction=direction, k=k)
        else:
            answers = student.predict(entity, relation, direction=direction, k=k, exclude_known=exclude_known)
        lines.append({"query": text, "direction": direction, "answers": as_rows(answers)})
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def _queries(inputs: list[str]) -> list[str]:
    found = []
    for name in inputs:
        if Path(name).is_file():
            try:
                text = Path(name).read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{name} is not UTF-8 text") from error
            found += [line.rstrip("\r") for line in text.split("\n") if line.strip()]
        else:
            found.append(name)
    return found


def _parse_query(text: str) -> tuple[str, str, Literal["tail", "head"]]:
    parts = [part.strip() for part in text.split("\t" if "\t" in text else ",")]
    if len(parts) == 3 and parts[0] == "?":
        return parts[2], parts[1], "head"
    if len(parts) == 3 and parts[2] == "?":
        parts = parts[:2]
    if len(parts) != 2 or not all(parts):
        raise UserError(f"{text!r} is no query: write ENTITY, RELATION for tails or ?, RELATION, ENTITY for heads")
    return parts[0], parts[1], "tail"


def explain(run: str, entity: str, relation: str, answer: str, *, direction: Literal["tail", "head"] = "tail") -> str:
    """Show which training facts speak for an answer, with ids.

    Args:
        run: folder of the run, or of one of its students.
        entity: id or name of the given entity.
        relation: id or text.
        answer: id or name of the answer.
        direction: which end is asked for.
    """
    found = Student.load(run).explain(entity, relation, answer, direction=direction)
    return json.dumps(found, indent=1, ensure_ascii=False)


def complete(
    run: str, *, top: int = 1000, min_confidence: float = 0.5, out: str | None = None, factory: str | None = None
) -> str:
    """Propose new triples for a curator, surest first: a TSV with probabilities and both students' ranks.

    Args:
        run: folder of the run, or of one of its students.
        top: triples at most.
        min_confidence: least calibrated probability.
        out: file to write; printed where not given.
        factory: of an encoder of your own.
    """
    student = Student.load(run, factory)
    rows = student.complete(top=top, min_confidence=min_confidence)
    triples = [row["triple"] for row in rows]
    ranks: dict[str, list[int]] = {}
    for side in ("structure", "text"):
        folder = Path(run) / "students" / side
        if folder.is_dir() and triples:
            ranks[side] = Student.load(folder, factory).rank_of(triples)
    lines = ["head\trelation\ttail\tprobability\thit_rate_lower_bound\tstructure_rank\ttext_rank"]
    for place, row in enumerate(rows):
        both = [str(ranks[side][place]) if side in ranks else "" for side in ("structure", "text")]
        cells = [
            row["head"],
            row["relation"],
            row["tail"],
            f"{row['probability']:.4f}",
            f"{row['hit_rate']:.4f}",
            *both,
        ]
        lines.append("\t".join(cells))
    if out is None:
        return "\n".join(lines)
    write_atomically(out, "\n".join(lines) + "\n")
    return f"{len(rows)} triples: {out}"


def sparsify(
    data: str,
    out: str,
    *,
    fraction: float = 0.1,
    root: str | None = None,
    order: Order | None = None,
    seed: int = 0,
    keep_unseen: bool = False,
) -> dict[str, Any]:
    """Write a thinner graph: train, valid and test files, and the removed triples as hidden.txt.

    Args:
        data: the graph, see the setting data.name.
        out: folder to write, which must not exist.
        fraction: share of the training triples to keep.
        root: folder of the graph.
        order: columns of its files.
        seed: of the choice.
        keep_unseen: keep validation and test triples whose entities lost all their training triples.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"{folder} already exists; name a new folder")
    graph = thin(
        load_graph(data, root=root, order=order, missing_texts="id"), fraction, seed=seed, keep_unseen=keep_unseen
    )
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


def describe(data: str, *, root: str | None = None, order: Order | None = None) -> dict[str, Any]:
    """Say what a graph holds: sizes, degrees, texts, unseen entities, leaks between its splits.

    Args:
        data: the graph, see the setting data.name.
        root: folder of the graph.
        order: columns of its files where their layout does not declare them.
    """
    graph = load_graph(data, root=root, order=order, missing_texts="id")
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
        "test_triples_with_unseen": int((~seen[graph.test[:, 0]] | ~seen[graph.test[:, 2]]).sum()),
        "names_that_repeat": len(graph.names) - len(set(graph.names)),
        "leakage": leakage(graph),
        "notes": list(graph.notes),
    }


def rescore(tails: str, heads: str) -> dict[str, Any]:
    """Compute metrics from two prediction files in SimKGC's JSON, ours or others'.

    Args:
        tails: predictions of tails.
        heads: predictions of heads.
    """
    from tenfold.systems.graph_fusion.interchange import metrics_of_predictions

    return metrics_of_predictions(tails, heads)


def predictions(
    run: str, out: str, *, split: Literal["train", "valid"] = "valid", factory: str | None = None
) -> dict[str, Any]:
    """Write a split's predictions as SimKGC's JSON, a file per direction; rescore reads them.

    Args:
        run: folder of the run, or of one of its students.
        out: folder to write.
        split: what is predicted.
        factory: of an encoder of your own.
    """
    from tenfold.systems.graph_fusion.interchange import write_predictions

    student = Student.load(run, factory)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"tail": folder / "predictions_forward.json", "head": folder / "predictions_backward.json"}
    for direction, path in files.items():
        write_predictions(student, path, split=split, direction=direction)  # type: ignore[arg-type]
    return {direction: str(path) for direction, path in files.items()}


VERBS = {
    "describe": describe,
    "sparsify": sparsify,
    "complete": complete,
    "explain": explain,
    "predictions": predictions,
    "rescore": rescore,
}
