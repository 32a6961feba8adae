"""Any BERT-like encoder from a local folder: our own BERT where it is one, else transformers; nothing is downloaded."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.models.checkpoints import load_strictly, read_checkpoint
from tenfold.systems.query_summarizer.encoders.bert import Bert, BertShape, published_names
from tenfold.systems.query_summarizer.text.wordpiece import WordPiece


class Tokenizer(Protocol):
    """What packing needs of a tokenizer: pieces of a text, and the numbers of four special ones."""

    pad: int
    cls: int
    sep: int
    mask: int

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text, without special tokens."""
        ...


def load_encoder(folder: str | Path) -> tuple[nn.Module, Tokenizer]:
    """An encoder ``(ids, types, mask) -> (batch, tokens, width)`` and its tokenizer.

    Args:
        folder: holds ``config.json``, weights, and ``vocab.txt`` or another tokenizer's files.

    Raises:
        UserError: the folder holds no such model, or one that needs transformers where that is not installed.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no encoder (config.json): {' '.join(str(error).split())[:160]}") from error
    if isinstance(config, dict) and config.get("model_type", "bert") == "bert" and (folder / "vocab.txt").exists():
        return _load_bert(folder, config)
    return _load_with_transformers(folder)


def _load_bert(folder: Path, config: dict[str, Any]) -> tuple[Bert, WordPiece]:
    file = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).exists()), None
    )
    if file is None:
        raise UserError(f"{folder} holds no weights (model.safetensors)")
    encoder = Bert(BertShape.from_config(config))
    load_strictly(
        encoder, {name: value.float() for name, value in published_names(read_checkpoint(file)).items()}, file
    )
    lowercase = config.get("do_lower_case", True)
    options = folder / "tokenizer_config.json"
    if options.exists():
        lowercase = json.loads(options.read_text(encoding="utf-8")).get("do_lower_case", lowercase)
    return encoder.eval(), WordPiece.from_file(folder / "vocab.txt", bool(lowercase))


class _TransformersTokenizer:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        if first is None or last is None:
            raise UserError("the tokenizer has no tokens that begin and end a text: name a BERT-like encoder")
        self.cls, self.sep = int(first), int(last)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else last)
        self.mask = int(tokenizer.mask_token_id if tokenizer.mask_token_id is not None else first)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


class _TransformersEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.max_tokens = int(getattr(model.config, "max_position_embeddings", 512))
        self._types = int(getattr(model.config, "type_vocab_size", 0) or 0)
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions start behind the padding's
            self.max_tokens -= 2

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        more = {"token_type_ids": types} if self._types > 1 else {}
        return self.model(input_ids=ids, attention_mask=mask.long(), **more).last_hidden_state


def _load_with_transformers(folder: Path) -> tuple[nn.Module, Tokenizer]:
    transformers = require("transformers", "transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot load the encoder {folder}: {' '.join(str(error).split())[:200]}") from error
    return _TransformersEncoder(model.float()).eval(), _TransformersTokenizer(tokenizer)


def own_encoder(tokenizer: WordPiece, seed: int, **sizes: Any) -> Bert:
    """A compact BERT with random weights for a vocabulary; ``sizes`` as in ``BertShape``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Bert(BertShape(vocab_size=len(tokenizer), **sizes))
