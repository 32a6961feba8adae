"""Trained encoders of other projects, by the names and shapes of their weights. Nothing in a file is executed.

No official VEM2L checkpoint exists. Rows are brought into this library's order of ids; inverse relations into r + R.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint, read_torch_file
from tenfold.models.folder import load_weights
from tenfold.systems.graph_fusion.encoders.build_encoder import build_encoder
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.tables import open_place, read_lines

State = dict[str, Tensor]


@dataclass(frozen=True)
class Imported:
    """An encoder that was read.

    Attributes:
        scorer: with the checkpoint's weights.
        builder: its name here.
        arguments: with which it is built again.
        source: project whose layout the file has.
    """

    scorer: QueryScorer
    builder: str
    arguments: dict[str, Any]
    source: str


@dataclass(frozen=True)
class _Order:
    """Rows of the checkpoint for each of our entities and relations."""

    entities: Tensor
    relations: Tensor


def import_checkpoint(
    path: str | Path,
    graph: KnowledgeGraph,
    entities: str | None = None,
    relations: str | None = None,
    *,
    encoder: str | None = None,
    text_model: str | None = None,
) -> Imported:
    """Read a checkpoint of RotatE, HAKE, CompGCN, LibKGE, PyKEEN (a state dict) or SimKGC.

    Args:
        path: the file.
        graph: the graph that it was trained on.
        entities: file with the entity ids in the checkpoint's order; sorted ids where ``None``.
        relations: the same for relations.
        encoder: ``transe``, ``distmult``, ``complex`` or ``rotate``: needed for PyKEEN's state dicts, whose names tell
            no model.
        text_model: for SimKGC, the local transformers folder (configuration and tokenizer) that it started from.

    Raises:
        UserError: the file is damaged, of no known layout, or of another graph.
    """
    content = _read(path)
    order = _Order(_order_of(entities, graph.entities, "entities"), _order_of(relations, graph.relations, "relations"))
    state = content.get("model_state_dict")
    if isinstance(state, Mapping) and "entity_embedding" in state:
        return _from_rotate(dict(state), graph, order, path)
    model = content.get("model")
    if isinstance(model, (list, tuple)) and model and isinstance(model[0], Mapping):
        return _from_libkge(dict(model[0]), content.get("config"), graph, order, path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state dict")
    plain = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if "init_embed" in plain:
        return _from_compgcn(plain, content.get("args"), graph, order, path)
    if "log_inv_t" in plain:
        return _from_simkgc(plain, graph, text_model, path)
    if "entity_representations.0._embeddings.weight" in plain:
        return _from_pykeen(plain, graph, order, encoder, path)
    raise UserError(
        f"{path} is no checkpoint of RotatE, HAKE, CompGCN, LibKGE, PyKEEN (state dict) or SimKGC; it holds "
        f"{', '.join(list(map(str, content))[:5])}"
    )


def _read(path: str | Path) -> dict[str, Any]:
    if Path(path).suffix == ".safetensors":
        return read_checkpoint(path)
    content = read_torch_file(path, allow=[argparse.Namespace])
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_encoder_weights(encoder: QueryScorer, weights: str, graph: KnowledgeGraph) -> None:
    """Load weights that tenfold wrote, a model folder or one safetensors file, into an encoder of the same kind.

    Raises:
        UserError: they are missing or do not fit.
    """
    path = Path(weights)
    if path.is_dir():
        load_weights(encoder, path)
    else:
        load_strictly(encoder, read_checkpoint(path), path)


def _order_of(name: str | None, ours: tuple[str, ...], what: str) -> Tensor:
    """Row of the checkpoint for each of our ids, from a file with one id, or number and id, per line."""
    if name is None:
        return torch.arange(len(ours))
    place: dict[str, int] = {}
    for number, line in enumerate(read_lines(open_place(name))):
        cells = line.split("\t")
        if len(cells) > 1 and cells[0].isdigit():
            place[cells[1]] = int(cells[0])
        elif len(cells) > 1 and cells[1].isdigit():
            place[cells[0]] = int(cells[1])
        else:
            place[cells[0]] = number
    missing = [key for key in ours if key not in place]
    if missing:
        raise UserError(f"{name} misses {len(missing):,} of the graph's {what}, such as {missing[0]!r}")
    return torch.tensor([place[key] for key in ours])


def _rows(table: Tensor, order: Tensor, path: str | Path, what: str, blocks: int = 1) -> Tensor:
    if len(table) != blocks * len(order):
        raise UserError(
            f"{path} has {len(table):,} {what} rows, the graph {blocks * len(order):,}: it is of another graph"
        )
    return torch.cat([part[order] for part in table.chunk(blocks)])


def _build(
    name: str, arguments: dict[str, Any], state: State, graph: KnowledgeGraph, path: Any, source: str
) -> Imported:
    scorer = build_encoder(name, graph, arguments)
    load_strictly(scorer, state, path)
    return Imported(scorer.eval(), name, arguments, source)


def _from_rotate(state: State, graph: KnowledgeGraph, order: _Order, path: str | Path) -> Imported:
    """DeepGraphLearning's RotatE and MIRALab's HAKE: gamma, range, embeddings; no inverse relations."""
    gamma = float(state["gamma"].flatten()[0])
    weights = {
        "entity_embedding": _rows(state["entity_embedding"].float(), order.entities, path, "entity"),
        "relation_embedding": _rows(state["relation_embedding"].float(), order.relations, path, "relation"),
    }
    dim = weights["entity_embedding"].shape[1] // 2
    width = weights["relation_embedding"].shape[1]
    arguments = {"dim": dim, "gamma": gamma}
    if width == 3 * dim:
        for name in ("phase_weight", "modulus_weight"):
            weights[name] = state[name].float().reshape(1, 1)
        found, source = "hake", "HAKE"
    elif width == dim:
        found, source = "rotate", "RotatE"
    else:
        raise UserError(
            f"{path}: relation vectors of width {width} for entities of {2 * dim} are neither RotatE nor HAKE"
        )
    made = _build(found, arguments, weights, graph, path, source)
    expected = float(state["embedding_range"].flatten()[0])
    if abs(made.scorer.embedding_range - expected) > 1e-4 * expected:  # type: ignore[operator]
        raise UserError(f"{path}: embedding_range {expected:g} is not (gamma + 2) / dim; the file is damaged")
    return made


def _from_libkge(state: State, config: Any, graph: KnowledgeGraph, order: _Order, path: str | Path) -> Imported:
    """LibKGE: embedders; reciprocal models have 2R relations in our order and a prefix."""
    reciprocal = any(name.startswith("_base_model.") for name in state)
    plain = {name.removeprefix("_base_model."): value.float() for name, value in state.items()}
    options = config.get("options", config) if isinstance(config, Mapping) else {}
    name = _libkge_model(options)
    entities = _rows(plain["_entity_embedder._embeddings.weight"], order.entities, path, "entity")
    blocks = 2 if reciprocal else 1
    relations = _rows(plain["_relation_embedder._embeddings.weight"], order.relations, path, "relation", blocks)
    inverse = "learned" if reciprocal else "algebraic"
    width = entities.shape[1]
    if name in ("complex", "rotate"):
        width //= 2
    arguments: dict[str, Any] = {"dim": width, "inverse": inverse}
    if name == "transe":
        arguments["norm"] = int(float(options.get("transe", {}).get("l_norm", 1)))
    if name == "rotate":
        arguments["gamma"] = 0.0  # LibKGE has no margin in the score; a constant changes no rank
        relations = relations * (2.0 / width / torch.pi)  # radians to our parameters
    weights = {"entity_embedding": entities, "relation_embedding": relations}
    return _build(name, arguments, weights, graph, path, "LibKGE")


def _libkge_model(options: Mapping[str, Any]) -> str:
    name = options.get("model", "")
    if name == "reciprocal_relations_model":
        name = options.get(name, {}).get("base_model", {}).get("type", "")
    if name not in ("transe", "distmult", "complex", "rotate"):
        raise UserError(f"LibKGE's model {name!r} cannot be read; TransE, DistMult, ComplEx and RotatE can")
    return name


def _from_pykeen(state: State, graph: KnowledgeGraph, order: _Order, encoder: str | None, path: str | Path) -> Imported:
    """PyKEEN's state dict; relations 2r and 2r + 1 become r and r + R, pairs of reals become halves."""
    if encoder is None:
        raise UserError(
            f"{path} is a PyKEEN state dict, which names no model: say --encoder transe|distmult|complex|rotate"
        )
    entities = state["entity_representations.0._embeddings.weight"].float()
    relations = state["relation_representations.0._embeddings.weight"].float()
    learned = len(relations) == 2 * graph.num_relations
    if learned:
        relations = torch.cat([relations[0::2], relations[1::2]])
    if encoder in ("complex", "rotate"):
        entities = _halves(entities)
        relations = _halves(relations)
    entities = _rows(entities, order.entities, path, "entity")
    relations = _rows(relations, order.relations, path, "relation", 2 if learned else 1)
    width = entities.shape[1] // (2 if encoder in ("complex", "rotate") else 1)
    arguments: dict[str, Any] = {"dim": width, "inverse": "learned" if learned else "algebraic"}
    if encoder == "rotate":
        arguments["gamma"] = 0.0
        real, imaginary = relations.chunk(2, 1)
        relations = torch.atan2(imaginary, real) * (2.0 / width / torch.pi)
    weights = {"entity_embedding": entities, "relation_embedding": relations}
    return _build(encoder, arguments, weights, graph, path, "PyKEEN")


def _halves(pairs: Tensor) -> Tensor:
    return torch.cat([pairs[:, 0::2], pairs[:, 1::2]], 1)


def _from_compgcn(state: State, args: Any, graph: KnowledgeGraph, order: _Order, path: str | Path) -> Imported:
    """The official CompGCN: its sizes are in its weights, its operations in the arguments saved beside them."""
    options: Mapping[str, Any] = (
        vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    )
    layers = 2 if "conv2.w_in" in state else 1
    renamed: State = {
        "init_embed": _rows(state["init_embed"], order.entities, path, "entity"),
        "init_rel": _rows(state["init_rel"], order.relations, path, "relation", 2),
        "entity_biases": state["bias"][order.entities] if "bias" in state else torch.zeros(graph.num_entities),
    }
    for layer in range(layers):
        prefix = f"conv{layer + 1}."
        renamed |= {
            f"layers.{layer}.{name.removeprefix(prefix)}": v for name, v in state.items() if name.startswith(prefix)
        }
    width = state["conv1.w_in"].shape[1]
    conve = "m_conv1.weight" in state
    arguments: dict[str, Any] = {
        "dim": width,
        "initial_dim": state["init_embed"].shape[1],
        "layers": layers,
        "composition": str(options.get("opn", "corr")),
        "decoder": "conve" if conve else str(options.get("score_func", "distmult")).lower(),
        "bias": "conv1.bias" in state,
    }
    if arguments["decoder"] == "transe":
        arguments["gamma"] = float(options.get("gamma", 40.0))
    if conve:
        names: dict[str, str] = {"m_conv1": "convolution", "fc": "project", "bn0": "bn0", "bn1": "bn1", "bn2": "bn2"}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if head in names:
                renamed[f"tower.{names[head]}.{rest}"] = value
        filters, _, kernel, _ = state["m_conv1.weight"].shape
        arguments["decoder_options"] = {
            "channels": filters,
            "kernel": kernel,
            "width": int(options.get("k_w", 10)),
            "arrange": "interleave",
        }
    scorer = build_encoder("compgcn", graph, arguments)
    edges = graph.train[:, [0, 2]].T.contiguous()
    scorer.set_graph(edges, graph.train[:, 1].contiguous(), torch.ones(len(graph.train)))
    graph_buffers = {name: value for name, value in scorer.state_dict().items() if name in ("edges", "kinds", "norms")}
    load_strictly(scorer, renamed | graph_buffers, path)
    return Imported(scorer.eval(), "compgcn", arguments, "CompGCN")


def _from_simkgc(state: State, graph: KnowledgeGraph, text_model: str | None, path: str | Path) -> Imported:
    """SimKGC: two BERT towers and the logarithm of the inverse temperature."""
    if text_model is None:
        raise UserError(f"{path} is of SimKGC: name the local folder of the model it started from with --text_model")
    towers = {"hr_bert.": "query_tower.", "tail_bert.": "candidate_tower."}
    renamed: State = {"log_temperature": state["log_inv_t"]}
    for name, value in state.items():
        for theirs, ours in towers.items():
            # Older transformers saved positions as a buffer.
            if name.startswith(theirs) and not name.endswith("position_ids"):
                renamed[ours + name.removeprefix(theirs)] = value
    arguments = {"checkpoint": text_model, "weights": False}
    scorer = build_encoder("bi-encoder", graph, arguments)
    renamed["relation_embedding"] = torch.zeros_like(scorer.state_dict()["relation_embedding"])
    load_strictly(scorer, renamed, path)
    return Imported(scorer.eval(), "bi-encoder", arguments, "SimKGC")
