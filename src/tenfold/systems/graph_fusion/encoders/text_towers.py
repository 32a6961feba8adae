"""Text encoders on a transformers checkpoint in a local folder: bi-encoder and pair scorer.

Candidate vectors of all entities are kept in a table that is refreshed every few steps; within a step gradients reach
the query tower, and the candidate tower through the batch's answers only.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.systems.graph_fusion.encoders.check_arguments import at_least
from tenfold.systems.graph_fusion.encoders.hash_text import first_of_same_texts
from tenfold.systems.graph_fusion.encoders.previous_vectors import PreviousVectors
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex

LOCAL = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, and no code that a folder brings is run."""

_SHORT = 20
"""Descriptions of fewer words get the names of neighbours."""


def load_checkpoint(folder: str | Path, weights: bool = True) -> tuple[Any, Any]:
    """A transformers model and its tokenizer from a local folder; nothing is downloaded, nothing in it is executed.

    Args:
        folder: holds ``config.json``, a tokenizer, and ``model.safetensors``.
        weights: load the weights; else the architecture alone.

    Raises:
        UserError: transformers is not installed, or the folder holds no such checkpoint.
    """
    transformers = require("transformers", "transformers")
    if not (Path(folder) / "config.json").exists():
        raise UserError(f"{folder} holds no transformers checkpoint (config.json): name a local folder")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        if weights:
            model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **LOCAL)
        else:
            config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
            model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # a damaged or strange folder ends the library anywhere
        raise UserError(f"cannot load the checkpoint {folder}: {' '.join(str(error).split())[:200]}") from error
    return model.float(), tokenizer


class _TextTowers(QueryScorer):
    """Texts, tokens, and the refreshed table; subclasses say how vectors are made and compared.

    Args:
        num_entities: N.
        num_relations: R.
        checkpoint: local folder.
        names: per entity.
        descriptions: per entity, may be empty.
        relation_texts: per relation.
        neighbours: training answers of directed queries; their names complete short descriptions. ``None``: names of
            neighbours are not used.
        max_tokens: texts are cut there.
        refresh: steps between two refreshes of the table.
        chunk: texts encoded at a time.
        weights: load the checkpoint's weights.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        checkpoint: str,
        names: Sequence[str],
        descriptions: Sequence[str],
        relation_texts: Sequence[str],
        neighbours: AnswerIndex | None = None,
        max_tokens: int = 50,
        refresh: int = 500,
        chunk: int = 256,
        weights: bool = True,
    ) -> None:
        super().__init__(num_entities, num_relations)
        at_least(1, max_tokens=max_tokens, refresh=refresh, chunk=chunk)
        self.query_tower, self.tokenizer = load_checkpoint(checkpoint, weights)
        self.names, self.descriptions = list(names), list(descriptions)
        self.relation_texts = [*relation_texts, *(f"inverse {text}" for text in relation_texts)]
        self.neighbours = neighbours
        self.max_tokens, self.refresh, self.chunk = max_tokens, refresh, chunk
        self.width = int(self.query_tower.config.hidden_size)
        # Relations with the same words still differ.
        self.relation_embedding = nn.Parameter(torch.zeros(2 * num_relations, self.width))
        self._table: Tensor | None = None
        self._age = 0
        self._fresh: Tensor | None = None

    def save_assets(self, folder: str | Path) -> None:
        """Write the architecture and the tokenizer, so that weights alone can be loaded."""
        self.query_tower.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def notes(self) -> list[str]:
        """How many texts are longer than what is read of them."""
        cut = 0
        for start in range(0, self.num_entities, self.chunk):
            stop = min(start + self.chunk, self.num_entities)
            texts = [self.entity_text(entity) for entity in range(start, stop)]
            cut += sum(len(tokens) > self.max_tokens for tokens in self.tokenizer(texts, verbose=False)["input_ids"])
        read = f"only the first {self.max_tokens} tokens are read (max_tokens in the encoder's arguments)"
        return [f"Of {cut:,} of {self.num_entities:,} entity texts {read}."] * (cut > 0)

    def entity_text(self, entity: int, relation: int | None = None) -> str:
        """Name, description and, where that is short, names of up to ten training neighbours, by number.

        Args:
            entity: its number.
            relation: of the query while training: its answers must not stand in the query's own text.
        """
        name, description = self.names[entity], self.descriptions[entity]
        if self.neighbours is not None and len(description.split()) < _SHORT:
            near = self._neighbours_of(entity, relation)
            description = f"{description} {' '.join(self.names[n] for n in near[:10])}".strip()
        return f"{name}: {description}" if description else name

    def _neighbours_of(self, entity: int, relation: int | None) -> list[int]:
        assert self.neighbours is not None
        owners = self.neighbours.queries[:, 0].contiguous()
        first, last = (int(torch.searchsorted(owners, entity, right=right)) for right in (False, True))
        rows = torch.arange(first, last)
        _, near, _ = self.neighbours.of(rows)
        if relation is not None:
            _, answers, _ = self.neighbours.of(self.neighbours.find(torch.tensor([[entity, relation]])))
            near = near[~torch.isin(near, answers)]
        return [n for n in near.unique().tolist() if n != entity]

    def query_texts(self, heads: Tensor, relations: Tensor) -> list[str]:
        """Texts of queries' entities; while training without the names of the queries' answers."""
        pairs = zip(heads.tolist(), relations.tolist(), strict=True)
        return [self.entity_text(h, r if self.training else None) for h, r in pairs]

    def encode_texts(self, tower: nn.Module, first: Sequence[str], second: Sequence[str] | None = None) -> Tensor:
        """``(n, width)`` pooled vectors of texts, or of pairs of texts."""
        raise NotImplementedError

    def candidate_tower_vectors(self, entities: Sequence[int]) -> Tensor:
        """``(n, width)`` fresh vectors of candidates."""
        raise NotImplementedError

    def begin_step(self, answers: Tensor) -> None:
        """The batch's answers get fresh vectors with gradients; the table of all others is refreshed now and then."""
        self._fresh = answers.unique()
        if self._table is None or self._age >= self.refresh:
            self._table, self._age = self._all_vectors(), 0
        self._age += 1

    @torch.no_grad()
    def _all_vectors(self) -> Tensor:
        training = self.training
        self.eval()
        parts = [
            self.candidate_tower_vectors(range(start, min(start + self.chunk, self.num_entities)))
            for start in range(0, self.num_entities, self.chunk)
        ]
        self.train(training)
        return torch.cat(parts)

    def encode(self) -> Tensor:
        """All candidates' vectors: fresh in evaluation; while training, the table with the batch's rows renewed."""
        if not (self.training and torch.is_grad_enabled()):
            return self._all_vectors()
        if self._table is None:
            self._table = self._all_vectors()
        if self._fresh is None:
            return self._table
        fresh = torch.cat([self.candidate_tower_vectors(part) for part in self._chunks(self._fresh.tolist())])
        return self._table.index_put((self._fresh,), fresh)

    def _chunks(self, entities: list[int]) -> list[list[int]]:
        return [entities[start : start + self.chunk] for start in range(0, len(entities), self.chunk)]

    def entity_vectors(self, entities: Tensor | None = None) -> Tensor:
        """See `QueryScorer`."""
        return self.encoding if entities is None else self.encoding[entities]

    def same_candidates(self) -> Tensor | None:
        """Entities of the same text: padding may change the last digit of their vectors, but they count as one."""
        return first_of_same_texts([self.entity_text(entity) for entity in range(self.num_entities)])

    def _tokens(self, first: Sequence[str], second: Sequence[str] | None = None) -> dict[str, Tensor]:
        device = self.relation_embedding.device
        tokens = self.tokenizer(
            list(first),
            None if second is None else list(second),
            truncation=True,
            max_length=self.max_tokens,
            padding=True,
            return_tensors="pt",
        )
        return {name: value.to(device) for name, value in tokens.items()}


class BiEncoder(_TextTowers):
    """SimKGC's two towers: (entity, relation) and candidate, unit vectors, cosine over a learned temperature.

    Pooling is the mean over tokens that are not padding. Both towers start from the same checkpoint with weights of
    their own. Use the supervised loss ``infonce`` for SimKGC's recipe.

    Args:
        num_entities: N.
        num_relations: R.
        previous: candidate vectors of previous batches kept as further negatives of ``infonce``; a multiple of the
            batch size. SimKGC keeps two batches on FB15k-237, none on WN18RR.
        **options: see `_TextTowers`.
    """

    similarity = "cos"

    def __init__(self, num_entities: int, num_relations: int, previous: int = 0, **options: Any) -> None:
        at_least(0, previous=previous)
        super().__init__(num_entities, num_relations, **options)
        self.candidate_tower = copy.deepcopy(self.query_tower)
        self.log_temperature = nn.Parameter(torch.tensor(1 / 0.05).log())
        self.previous = PreviousVectors(previous, self.width) if previous > 0 else None

    def encode_texts(self, tower: nn.Module, first: Sequence[str], second: Sequence[str] | None = None) -> Tensor:
        """Mean over tokens that are not padding, not yet of unit length."""
        tokens = self._tokens(first, second)
        hidden = tower(**tokens).last_hidden_state
        mask = tokens["attention_mask"][:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-6)

    def candidate_tower_vectors(self, entities: Sequence[int]) -> Tensor:
        """Unit vectors of ``name: description``."""
        texts = [self.entity_text(entity) for entity in entities]
        return F.normalize(self.encode_texts(self.candidate_tower, texts), dim=-1)

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Unit vectors of ``name: description`` paired with the relation's words."""
        return self.vectors_of_queries(self.query_texts(heads, relations), relations)

    def vectors_of_queries(self, texts: Sequence[str], relations: Tensor) -> Tensor:
        """Unit vectors of queries whose entity is only a text."""
        words = [self.relation_texts[r] for r in relations.tolist()]
        pooled = [
            self.encode_texts(self.query_tower, texts[start : start + self.chunk], words[start : start + self.chunk])
            for start in range(0, len(texts), self.chunk)
        ]
        return F.normalize(torch.cat(pooled) + self.relation_embedding[relations], dim=-1)

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Cosine times the inverse temperature."""
        with self.encoded():
            return self.query_vectors(heads, relations) @ self.encoding.T * self.score_scale()

    @property
    def has_vectors(self) -> bool:
        """Scores are a product of vectors."""
        return True

    def score_scale(self) -> Tensor:
        """The inverse temperature, at most 100."""
        return self.log_temperature.exp().clamp(max=100.0)

    def score_texts(self, texts: Sequence[str], relations: Tensor) -> Tensor:
        """Raw scores ``(n, N)`` of all entities for queries whose entity is only a text."""
        with self.encoded():
            return self.vectors_of_queries(texts, relations) @ self.encoding.T * self.score_scale()


class PairScorer(_TextTowers):
    """StAR: one tower for (entity, relation) and candidate; a classifier on ``[u; v; u - v; u * v]`` and a distance.

    The score is the classifier's log-odds of "true" minus the distance.

    Args:
        num_entities: N.
        num_relations: R.
        margin: of the contrastive loss.
        contrast: weight of the contrastive loss.
        negatives: candidates drawn for each positive.
        dropout: before the classifier.
        **options: see `_TextTowers`.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        margin: float = 1.0,
        contrast: float = 1.0,
        negatives: int = 5,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        at_least(1, negatives=negatives)
        super().__init__(num_entities, num_relations, **options)
        self.margin, self.contrast, self.negatives = margin, contrast, negatives
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * self.width, 2)

    def encode_texts(self, tower: nn.Module, first: Sequence[str], second: Sequence[str] | None = None) -> Tensor:
        """The first token's vector."""
        return tower(**self._tokens(first, second)).last_hidden_state[:, 0]

    def candidate_tower_vectors(self, entities: Sequence[int]) -> Tensor:
        """Vectors of ``name: description``."""
        return self.encode_texts(self.query_tower, [self.entity_text(entity) for entity in entities])

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Vectors of ``name: description`` paired with the relation's words."""
        texts = self.query_texts(heads, relations)
        words = [self.relation_texts[r] for r in relations.tolist()]
        return self.encode_texts(self.query_tower, texts, words) + self.relation_embedding[relations]

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Every candidate's score, in chunks; the classifier is linear, so that parts of it are shared."""
        with self.encoded():
            queries, candidates = self.query_vectors(heads, relations), self.encoding
            return torch.cat([self._odds(queries, part) for part in candidates.split(self.chunk)], 1)

    def _odds(self, queries: Tensor, candidates: Tensor) -> Tensor:
        weight = self.classifier.weight[1] - self.classifier.weight[0]
        bias = self.classifier.bias[1] - self.classifier.bias[0]
        w_u, w_v, w_minus, w_times = weight.chunk(4)
        linear = (queries @ (w_u + w_minus))[:, None] + candidates @ (w_v - w_minus)
        odds = linear + (queries * w_times) @ candidates.T + bias
        return odds - torch.cdist(queries, candidates)

    def supervised_loss(self, batch: Any) -> Tensor:
        """Cross-entropy of one answer against drawn candidates, and a margin between their distances."""
        n, device = self.num_entities, batch.heads.device
        queries = self.query_vectors(batch.heads, batch.relations)[batch.owner]
        drawn = torch.randint(n, (len(batch.answers), self.negatives), device=device)
        candidates = torch.cat([batch.answers[:, None], drawn], 1)
        vectors = self.encoding[candidates]
        u = queries[:, None].expand_as(vectors)
        features = self.dropout(torch.cat([u, vectors, u - vectors, u * vectors], -1))
        known = batch.answer_mask(n)[batch.owner].gather(1, drawn)
        truth = torch.cat([torch.ones_like(candidates[:, :1]), known.long()], 1)
        classes = F.cross_entropy(self.classifier(features).flatten(0, 1), truth.flatten())
        distances = (u - vectors).norm(dim=-1)
        gap = F.relu(self.margin + distances[:, :1] - distances[:, 1:])
        return classes + self.contrast * gap.masked_fill(known, 0.0).mean()
