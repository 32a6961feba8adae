"""ViLT of transformers, in and out: the same network under other names, with queries, keys and values apart."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.files import make_folder, printable, read_json, write_atomically
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.systems.dual_encoder.checkpoints.official import sizes_of_state
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder

_PARTS = (
    ("vilt.embeddings.text_embeddings.", "text_embeddings."),
    ("vilt.embeddings.token_type_embeddings.", "token_type_embeddings."),
    ("vilt.embeddings.cls_token", "transformer.cls_token"),
    ("vilt.embeddings.position_embeddings", "transformer.pos_embed"),
    ("vilt.embeddings.patch_embeddings.projection.", "transformer.patch_embed.proj."),
    ("vilt.layernorm.", "transformer.norm."),
    ("vilt.pooler.dense.", "pooler.dense."),
    ("classifier.", "classifier."),
)
_LAYER = (
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)
_THIRDS = ("query", "key", "value")
_THEIR_LAYER = re.compile(r"vilt\.encoder\.layer\.(\d+)\.(.+)")
_OUR_LAYER = re.compile(r"transformer\.blocks\.(\d+)\.(.+)")


def from_transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of a fusion encoder from those of transformers; what it has not is left out.

    Args:
        state: of ``ViltForQuestionAnswering``, ``ViltForImagesAndTextClassification`` or ``ViltModel``.

    Raises:
        UserError: a query, key or value is missing.
    """
    known = {
        name
        if name.startswith(("vilt.", "classifier.", "mlm_score.", "rank_output."))
        else f"vilt.{name}": value.float()
        for name, value in state.items()
    }
    found, thirds = {}, {}
    for name, value in known.items():
        layer = _THEIR_LAYER.fullmatch(name)
        if layer is None:
            for theirs, ours in _PARTS:
                if name.startswith(theirs) and not name.endswith("position_ids"):
                    found[ours + name.removeprefix(theirs)] = value
            continue
        number, inner = layer.groups()
        third = re.fullmatch(r"attention\.attention\.(query|key|value)\.(weight|bias)", inner)
        if third:
            thirds[number, third[1], third[2]] = value
            continue
        for theirs, ours in _LAYER:
            if inner.startswith(theirs):
                found[f"transformer.blocks.{number}.{ours}{inner.removeprefix(theirs)}"] = value
    for number, kind in {(number, kind) for number, _, kind in thirds}:
        try:
            parts = [thirds[number, third, kind] for third in _THIRDS]
        except KeyError as error:
            raise UserError(f"the checkpoint lacks a projection of layer {number}: {printable(error)}") from error
        found[f"transformer.blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    return found


def to_transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of ``from_transformers_state``.

    Args:
        state: of a ``FusionEncoder``.
    """
    found = {}
    for name, value in state.items():
        layer = _OUR_LAYER.fullmatch(name)
        if layer is None:
            theirs, ours = next(pair for pair in _PARTS if name.startswith(pair[1]))
            found[theirs + name.removeprefix(ours)] = value.clone()
            continue
        number, inner = layer.groups()
        if inner.startswith("attn.qkv."):
            for third, part in zip(_THIRDS, value.chunk(3), strict=True):
                kind = inner.removeprefix("attn.qkv.")
                found[f"vilt.encoder.layer.{number}.attention.attention.{third}.{kind}"] = part.clone()
            continue
        theirs, ours = next(pair for pair in _LAYER if inner.startswith(pair[1]))
        found[f"vilt.encoder.layer.{number}.{theirs}{inner.removeprefix(ours)}"] = value.clone()
    return found


def fusion_from_transformers(source: str | Path | nn.Module) -> tuple[FusionEncoder, tuple[str, ...]]:
    """A fusion encoder, in eval mode, and its answers, from a ViLT of transformers.

    Args:
        source: a local folder with ``config.json`` and weights, or a model with a ``config``.

    Raises:
        UserError: it is no ViLT with a task's head, or its weights do not fit.
    """
    if isinstance(source, nn.Module):
        config, state, what = source.config.to_dict(), source.state_dict(), type(source).__name__  # type: ignore[operator,union-attr]
    else:
        config, state, what = _read_config(source), read_transformers_weights(source), printable(source)
    if config.get("model_type") != "vilt":
        raise UserError(f"{what} is no ViLT (its model_type is {printable(config.get('model_type'), 40)!r})")
    ours = from_transformers_state(state)
    if "classifier.3.weight" not in ours:
        raise UserError(f"{what} has no head of a task: it must be fine-tuned on one, as vilt-b32-finetuned-vqa is")
    sizes = sizes_of_state(ours, int(config["num_attention_heads"]), float(config["layer_norm_eps"]))
    # Its dropout is 0 by default; training as published wants 0.1.
    model = FusionEncoder(replace(sizes, dropout=0.1), ours["classifier.3.weight"].shape[0])
    load_strictly(model, ours, what)
    labels = {int(number): str(label) for number, label in dict(config.get("id2label") or {}).items()}
    answers = tuple(labels.get(number, f"LABEL_{number}") for number in range(len(ours["classifier.3.bias"])))
    return model.eval(), answers


def tokenizer_of_folder(folder: str | Path, max_tokens: int = 40) -> QuestionTokenizer:
    """The word pieces of a folder of transformers: ``vocab.txt``, or those in ``tokenizer.json``.

    Args:
        folder: the folder.
        max_tokens: longest question.

    Raises:
        UserError: there is neither, or it is no WordPiece vocabulary.
    """
    if (Path(folder) / "vocab.txt").exists():
        return QuestionTokenizer.from_file(Path(folder) / "vocab.txt", max_tokens)
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{printable(folder)} holds neither vocab.txt nor tokenizer.json")
    model = read_json(path).get("model", {})
    if model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{printable(path)} is no WordPiece tokenizer")
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    return QuestionTokenizer(vocabulary, "wordpiece", max_tokens)


def save_transformers(model: FusionEncoder, folder: str | Path, answers: tuple[str, ...]) -> Path:
    """Write a fusion encoder as a folder that transformers' ``ViltForQuestionAnswering`` (or, of pairs,
    ``ViltForImagesAndTextClassification``) loads.

    Args:
        model: the network; its norms' eps must be the same everywhere in transformers, so the blocks' one is written.
        folder: made if need be.
        answers: its closed list.
    """
    from safetensors.torch import save

    sizes = model.sizes
    kind = "ViltForQuestionAnswering" if sizes.images == 1 else "ViltForImagesAndTextClassification"
    config: dict[str, Any] = {
        "model_type": "vilt",
        "architectures": [kind],
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": 4 * sizes.width,
        "hidden_act": "gelu",
        "layer_norm_eps": sizes.norm_eps,
        "image_size": sizes.grid * sizes.patch,
        "patch_size": sizes.patch,
        "max_position_embeddings": sizes.max_tokens,
        "modality_type_vocab_size": 1 + sizes.images,
        "num_images": sizes.images if sizes.images > 1 else -1,
        "id2label": {str(number): answer for number, answer in enumerate(answers)},
        "label2id": {answer: number for number, answer in enumerate(answers)},
    }
    folder = make_folder(folder)
    state = {
        name: value.detach().cpu().contiguous() for name, value in to_transformers_state(model.state_dict()).items()
    }
    write_atomically(folder / "model.safetensors", save(state, {"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def is_transformers_folder(path: str | Path) -> bool:
    """Whether a path is a folder of transformers: it has a ``config.json`` and is no model of tenfold's."""
    return (Path(path) / "config.json").is_file() and not (Path(path) / "model.json").exists()


def _read_config(folder: str | Path) -> dict[str, Any]:
    config = read_json(Path(folder) / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{printable(folder)}/config.json is no configuration")
    defaults = {"num_attention_heads": 12, "layer_norm_eps": 1e-12}
    return defaults | config


def read_transformers_weights(folder: str | Path) -> dict[str, Tensor]:
    """The state dict of a folder of transformers; nothing in it is executed.

    Raises:
        UserError: there are no weights, or they are damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = Path(folder) / name
        if path.exists():
            return unwrap_state(read_checkpoint(path), path)
    raise UserError(f"{printable(folder)} holds no weights (model.safetensors or pytorch_model.bin)")
