"""Encoders by name, for a graph."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tenfold.errors import UserError
from tenfold.files import first_line
from tenfold.models.builders import import_object
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph

_STRUCTURE = {
    "transe": "embeddings:TransE",
    "distmult": "embeddings:DistMult",
    "complex": "embeddings:ComplEx",
    "rotate": "rotations:RotatE",
    "hake": "rotations:HAKE",
    "conve": "conve:ConvE",
    "compgcn": "compgcn:CompGCN",
}
_TRANSFORMERS = {"bi-encoder": "BiEncoder", "pair-scorer": "PairScorer"}
TEXT_ENCODERS = ("hash-text", *_TRANSFORMERS)
NAMES = (*_STRUCTURE, "pykeen/MODEL", *TEXT_ENCODERS, "factory")


def build_encoder(
    name: str, graph: KnowledgeGraph, arguments: dict[str, Any] | None = None, factory: str | None = None
) -> QueryScorer:
    """An encoder with fresh weights (or, for text towers, those of their checkpoint).

    Args:
        name: one of `NAMES`.
        graph: gives sizes, texts and training triples.
        arguments: of the encoder.
        factory: ``package.module:function`` for ``factory``, called as ``function(graph, **arguments)``.

    Raises:
        UserError: an unknown name or argument, or what the encoder itself refuses.
    """
    arguments = dict(arguments or {})
    n, r = graph.num_entities, graph.num_relations
    if name in _STRUCTURE:
        module, _, attribute = _STRUCTURE[name].partition(":")
        return _call(getattr(import_module(f"{__package__}.{module}"), attribute), name, arguments, n, r)
    if name == "hash-text":
        from tenfold.systems.graph_fusion.encoders.hash_text import HashText

        texts = [f"{a} {b}".strip() for a, b in zip(graph.names, graph.descriptions, strict=True)]
        return _call(HashText, name, arguments, n, r, entity_texts=texts, relation_texts=graph.relation_texts)
    if name in _TRANSFORMERS:
        if "checkpoint" not in arguments:
            raise UserError(f"{name} needs a local transformers checkpoint: --text.arguments '{{checkpoint: FOLDER}}'")
        cls = getattr(import_module(f"{__package__}.text_towers"), _TRANSFORMERS[name])
        known = {
            "names": graph.names,
            "descriptions": graph.descriptions,
            "relation_texts": graph.relation_texts,
            "neighbours": graph.known("train") if arguments.pop("neighbour_names", False) else None,
        }
        return _call(cls, name, arguments, n, r, **known)
    if name.startswith("pykeen/"):
        from tenfold.systems.graph_fusion.encoders.pykeen_scorer import PyKEENScorer, make_pykeen_model

        return PyKEENScorer(make_pykeen_model(name.removeprefix("pykeen/"), graph.train, n, r, **arguments), n, r)
    if name == "factory":
        return _from_factory(factory, graph, arguments)
    raise UserError(f"there is no encoder {name!r}; there are: {', '.join(NAMES)}")


def _call(
    make: Callable[..., QueryScorer], name: str, arguments: dict[str, Any], *sizes: int, **known: Any
) -> QueryScorer:
    try:
        return make(*sizes, **known, **arguments)
    except TypeError as error:
        parameters = [p for p in inspect.signature(make).parameters if p not in known and not p.startswith("num_")]
        raise UserError(f"{name}: {error}; its arguments are: {', '.join(parameters)}") from error
    except UserError:
        raise
    except Exception as error:  # sizes that no memory holds, and what else an argument of a wrong kind ends in
        raise UserError(f"{name}: {first_line(error)}") from error


def _from_factory(factory: str | None, graph: KnowledgeGraph, arguments: dict[str, Any]) -> QueryScorer:
    make = import_object(factory, "factory")
    try:
        encoder = make(graph, **arguments)
    except Exception as error:  # whatever a user's function raises
        raise UserError(
            f"the factory {factory} cannot be called: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(encoder, QueryScorer):
        raise UserError(f"{factory} gave a {type(encoder).__name__}, not a QueryScorer")
    return encoder
