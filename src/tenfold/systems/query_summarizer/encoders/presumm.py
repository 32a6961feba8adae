"""Checkpoints of PreSumm and BertSum (Liu and Lapata, 2019): names translated, nothing executed.

The files hold the state dict beside an ``argparse.Namespace`` and an optimizer of the project; these are replaced by
empty stubs while reading.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import read_torch_file
from tenfold.systems.query_summarizer.encoders.bert import published_names

_PROJECT = ("models.optimizers.Optimizer", "models.optimizers.MultipleOptimizer", "models.optimizers.build_optim")
_PARTS = {
    "self_attn.linear_query": "query",
    "self_attn.linear_keys": "key",
    "self_attn.linear_values": "value",
    "self_attn.final_linear": "output",
    "feed_forward.w_1": "up",
    "feed_forward.w_2": "down",
    "feed_forward.layer_norm": "inner_norm",
    "layer_norm": "input_norm",
}


class _Stub:
    """Stands where a class of the project or of an optimizer was pickled; holds its values, does nothing."""


def read_presumm(path: str | Path) -> tuple[dict[str, Tensor], int]:
    """An extractor's state dict under the names of ``QBert``, and its number of inter-sentence layers.

    Args:
        path: ``bertext_cnndm_transformer.pt`` and the like.

    Raises:
        UserError: the file is damaged, wants to build anything else, or is not an extractor of these projects.
    """
    stubs: list[Any] = [(_Stub, name) for name in (*_PROJECT, "torch.optim.adam.Adam")]
    content = read_torch_file(path, allow=[argparse.Namespace, *stubs])
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a checkpoint of PreSumm or BertSum: it has no state dict under 'model'")
    named = {f"encoder.{name}": value for name, value in published_names(state).items()}
    layers = 0
    for name, value in state.items():
        part = next(
            (name.removeprefix(prefix) for prefix in ("ext_layer.", "encoder.") if name.startswith(prefix)), None
        )
        if part is None or part.startswith(("layer.", "pos_emb")):
            continue
        if part.startswith(("wo.", "linear1.")):
            named[f"head.{part.split('.', 1)[1]}"] = value
        elif part.startswith("layer_norm."):
            named[f"inter_sentence.norm.{part.split('.', 1)[1]}"] = value
        elif part.startswith("transformer_inter."):
            _, number, rest = part.split(".", 2)
            inner, _, kind = rest.rpartition(".")
            if inner not in _PARTS:
                raise UserError(f"{path} holds {name!r}, which no extractor of PreSumm has")
            named[f"inter_sentence.blocks.{number}.{_PARTS[inner]}.{kind}"] = value
            layers = max(layers, int(number) + 1)
    if "head.weight" not in named or not any(name.startswith("encoder.embeddings") for name in named):
        raise UserError(f"{path} is not an extractor of PreSumm or BertSum: it lacks the encoder or the scoring layer")
    for number in range(layers):  # the first block has no input norm in use, and some files leave it out
        for kind in ("weight", "bias"):
            key = f"inter_sentence.blocks.{number}.input_norm.{kind}"
            if key not in named:
                raise UserError(f"{path} lacks the layer norm of block {number}")
    return {name: value.float() for name, value in named.items()}, layers


def shape_of_state(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """Sizes of the BERT whose weights these are; heads have 64 channels, as in all published sizes, unless given."""
    words = state["encoder.embeddings.word_embeddings.weight"]
    layers = {int(name.split(".")[3]) for name in state if name.startswith("encoder.encoder.layer.")}
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or max(1, words.shape[1] // 64),
        "intermediate_size": state["encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state["encoder.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": state["encoder.embeddings.token_type_embeddings.weight"].shape[0],
    }
