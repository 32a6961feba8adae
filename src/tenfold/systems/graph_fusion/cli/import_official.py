"""Turn trained encoders of other projects into model folders."""

from pathlib import Path
from typing import Any, Literal

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.cli.export import refuse_others_folder
from tenfold.systems.graph_fusion.graph.columns import Order
from tenfold.systems.graph_fusion.graph.load_graph import load_graph
from tenfold.systems.graph_fusion.serve.student import Student


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
    from tenfold.systems.graph_fusion.encoders.official_checkpoints import import_checkpoint

    folder = Path(out) if out else Path(Path(checkpoint).name.split(".")[0])
    refuse_others_folder(folder)
    if (folder / "model.json").exists():
        raise UserError(f"{folder} already holds a model; name another folder with --out")
    graph = load_graph(data, root=root, order=order, missing_texts="id")
    found = import_checkpoint(checkpoint, graph, entities, relations, encoder=encoder, text_model=text_model)
    student = Student.of(found.scorer, graph, builder=found.builder, arguments=found.arguments)
    student.save(folder, side="text" if found.source == "SimKGC" else "structure", source=found.source)
    return {"model": str(folder), "encoder": found.builder, "source": found.source, "arguments": found.arguments}
