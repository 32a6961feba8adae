"""Extractors by name, for runs and for model folders."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tenfold.errors import UserError
from tenfold.systems.query_summarizer.encoders.bert import Bert, BertShape
from tenfold.systems.query_summarizer.encoders.local_folder import load_encoder, own_encoder
from tenfold.systems.query_summarizer.encoders.sentence_vectors import load_sentence_vectors, minilm_folder
from tenfold.systems.query_summarizer.extractor.fast_scorer import FastExtractor, FastScorer
from tenfold.systems.query_summarizer.extractor.pack_windows import Packing
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.text.wordpiece import WordPiece, make_vocabulary


def chosen_vectors(encoder: str) -> str:
    """The sentence vectors that ``auto`` stands for: MiniLM where its wheel is installed, else hashed words."""
    if encoder == "auto":
        return "minilm" if minilm_folder() is not None else "hashed-128"
    return encoder


def new_scorer(width_in: int, prior: float, seed: int, arguments: Mapping[str, Any]) -> FastScorer:
    """A ``FastScorer`` with random weights, the same for the same seed.

    Raises:
        UserError: an argument is unknown or out of range.
    """
    unknown = set(arguments) - {"width", "layers", "heads", "dropout"}
    if unknown:
        raise UserError(
            f"--model.arguments of the fast extractor are width, layers, heads, dropout; got {min(unknown)!r}"
        )
    width, heads = int(arguments.get("width", 128)), int(arguments.get("heads", 4))
    if width < 1 or heads < 1 or width % heads:
        raise UserError(f"--model.arguments: {heads} heads do not share a width of {width} evenly")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FastScorer(width_in, prior=prior, **arguments)


def new_qbert(
    encoder: str,
    texts: Sequence[str],
    seed: int,
    *,
    arguments: Mapping[str, Any],
    packing: Packing,
    inter_layers: int,
    prior: float,
) -> QBert:
    """A ``QBert`` on a local encoder, or on a compact BERT with random weights (``tiny``).

    Args:
        encoder: folder, or ``tiny``.
        texts: for the vocabulary of ``tiny``.
        seed: of random weights.
        arguments: sizes of ``tiny``.
        packing: how windows are made.
        inter_layers: inter-sentence layers.
        prior: share of positive sentences.
    """
    if encoder == "tiny":
        tokenizer = make_vocabulary(texts)
        module: nn.Module = own_encoder(tokenizer, seed, **arguments)
        words: Any = tokenizer
    else:
        module, words = load_encoder(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return QBert(module, words, packing, inter_layers=inter_layers, prior=prior)


def description_of(model: QBert | FastScorer, vectors: str = "") -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Builder, arguments and extra values of a model's manifest.

    Raises:
        UserError: the encoder is one of transformers', whose architecture a manifest does not hold.
    """
    if isinstance(model, FastScorer):
        arguments = {
            "width_in": model.sentence.in_features,
            "width": model.sentence.out_features,
            "layers": len(model.layers.layers),
            "heads": model.layers.layers[0].self_attn.num_heads,
        }
        return "fast", arguments, {"vectors": vectors}
    if not isinstance(model.encoder, Bert) or not isinstance(model.tokenizer, WordPiece):
        raise UserError(
            "only extractors on a BERT with a vocab.txt are kept as model folders; with another encoder save its state "
            "dict from Python"
        )
    packing = model.packing
    arguments = {
        "shape": model.encoder.shape.to_dict(),
        "packing": {name: getattr(packing, name) for name in packing.__dataclass_fields__},
        "inter_layers": 0 if model.inter_sentence is None else len(model.inter_sentence.blocks),
    }
    extra = {"vocabulary": model.tokenizer.vocabulary, "lowercase": model.tokenizer.lowercase}
    return "bert", arguments, extra


def build_from_manifest(builder: str, arguments: Mapping[str, Any], extra: Mapping[str, Any]) -> QBert | FastScorer:
    """The network of a manifest, with random weights.

    Raises:
        UserError: the manifest is not of this system's making.
    """
    try:
        if builder == "fast":
            return FastScorer(**{name: int(arguments[name]) for name in ("width_in", "width", "layers", "heads")})
        if builder == "bert":
            tokenizer = WordPiece([str(piece) for piece in extra["vocabulary"]], bool(extra["lowercase"]))
            encoder = Bert(BertShape(**arguments["shape"]))
            return QBert(
                encoder, tokenizer, Packing(**arguments["packing"]), inter_layers=int(arguments["inter_layers"])
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the manifest does not describe an extractor: {' '.join(str(error).split())[:160]}") from error
    raise UserError(f"there is no extractor {builder!r}; there are: fast, bert")


def extractor_of(model: QBert | FastScorer, vectors: str = "") -> QBert | FastExtractor:
    """What scores texts: the model itself, or with the frozen vectors that it was trained on."""
    return model if isinstance(model, QBert) else FastExtractor(model, load_sentence_vectors(vectors))
