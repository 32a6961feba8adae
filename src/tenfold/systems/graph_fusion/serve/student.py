"""One encoder, served alone: answers with probabilities, new facts for a curator, reasons with ids."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import UserError
from tenfold.losses import log_probabilities
from tenfold.models.folder import (
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    refuse_code,
    save_model,
)
from tenfold.systems.graph_fusion.encoders.build_encoder import build_encoder
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, check_scores
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex, with_inverses
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.graph.storage import empty_triples, read_graph, save_graph
from tenfold.systems.graph_fusion.graph.unobserved_queries import sample_unobserved
from tenfold.systems.graph_fusion.ranking.calibration import ConfidenceCurve, fit_temperature
from tenfold.systems.graph_fusion.serve.saved_settings import TEXT_MODEL, saved_settings

SYSTEM = "graph-fusion"


@dataclass(frozen=True)
class Prediction:
    """One answer of a query.

    Attributes:
        entity: id; names may repeat, ids do not.
        name: what it is called.
        probability: calibrated; among the candidates that were allowed.
        rank: from 1; equal scores share the better rank.
        known: the split that holds the triple, ``train``, ``valid``, ``test``, or ``left out`` where thinning removed
            it; ``None`` if none does.
        injected: whether the fusion injected the triple in its last round.
        seen: whether a training triple mentions the entity.
    """

    entity: str
    name: str
    probability: float
    rank: int
    known: str | None
    injected: bool
    seen: bool


class Student:
    """An encoder with its graph and calibration; knows nothing of the encoder that taught it.

    Args:
        scorer: the encoder.
        graph: entities, relations, texts and known triples.
        temperature: calibration of its scores.
        injected: ``(m, 3)`` triples that the fusion injected in its last round.
        builder: name of the encoder, to rebuild it.
        arguments: of the encoder.
        factory: of an encoder of the user's own.
    """

    def __init__(
        self,
        scorer: QueryScorer,
        graph: KnowledgeGraph,
        temperature: float,
        injected: Tensor | None = None,
        builder: str | None = None,
        arguments: dict[str, Any] | None = None,
        factory: str | None = None,
    ) -> None:
        self.scorer, self.graph, self.temperature = scorer.eval(), graph, temperature
        self.builder, self.arguments, self.factory = builder, arguments or {}, factory
        self.injected = empty_triples() if injected is None else injected
        self._known = {split: graph.known(split) for split in ("train", "valid", "test")}
        # What thinning removed was given, too: it is no news, though no encoder saw it.
        given = torch.cat([graph.train, graph.valid, graph.test, graph.hidden])
        self._everything = AnswerIndex(with_inverses(given, graph.num_relations), graph.num_relations)
        if len(graph.hidden):
            hidden = with_inverses(graph.hidden, graph.num_relations)
            self._known["left out"] = AnswerIndex(hidden, graph.num_relations)
        self._injected = AnswerIndex(with_inverses(self.injected, graph.num_relations), graph.num_relations)
        self._seen = graph.seen()
        same = scorer.same_candidates()
        self._same = None if same is None else same.cpu()

    @classmethod
    def of(
        cls, scorer: QueryScorer, graph: KnowledgeGraph, injected: Tensor | None = None, **rebuild: Any
    ) -> "Student":
        """A student with its temperature fitted on validation."""
        return cls(scorer, graph, fit_temperature(scorer, graph), injected, **rebuild)

    # --- answers ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        entity: str,
        relation: str,
        *,
        direction: Literal["tail", "head"] = "tail",
        k: int = 10,
        exclude_known: bool = True,
    ) -> list[Prediction]:
        """The best answers of ``(entity, relation, ?)``, or of ``(?, relation, entity)``.

        Args:
            entity: id, or a name that only one entity has.
            relation: id, or a text that only one relation has.
            direction: which end is asked for.
            k: how many answers.
            exclude_known: leave out answers that the graph holds, in any split, or held before it was thinned.

        Raises:
            UserError: the entity or the relation is unknown.
        """
        head, directed = self.graph.entity(entity), self._directed(relation, direction)
        scores = self.score(torch.tensor([head]), torch.tensor([directed]))[0]
        return self._answers(scores, torch.tensor([head, directed]), k, exclude_known)

    @torch.no_grad()
    def predict_text(
        self, text: str, relation: str, *, direction: Literal["tail", "head"] = "tail", k: int = 10
    ) -> list[Prediction]:
        """The best answers for an entity that is not in the graph and only has a text; text encoders only.

        Args:
            text: name, or name and description.
            relation: see `predict`.
            direction: see `predict`.
            k: how many answers.

        Raises:
            UserError: the encoder reads no texts.
        """
        score_texts: Any = getattr(self.scorer, "score_texts", None)
        if score_texts is None:
            raise UserError("this encoder knows entities of the graph only: new entities need the text encoder")
        if not text.strip():
            raise UserError("the new entity's text is empty")
        directed = self._directed(relation, direction)
        scores = score_texts([text], torch.tensor([directed]))[0].float()
        return self._answers(scores, None, k, False)

    def __call__(self, entity: str, relation: str, **options: Any) -> list[Prediction]:
        """The best answers of a query; see `predict`."""
        return self.predict(entity, relation, **options)

    def _directed(self, relation: str, direction: str) -> int:
        return self.graph.relation(relation) + (self.graph.num_relations if direction == "head" else 0)

    @torch.no_grad()
    def score(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Raw scores ``(B, N)`` on the CPU; relations in [0, 2R)."""
        device = next((p.device for p in self.scorer.parameters()), torch.device("cpu"))
        scores = self.scorer.score_all(heads.to(device), relations.to(device)).float().cpu()
        check_scores(scores, len(heads), self.graph.num_entities, "served")
        return scores if self._same is None else scores[:, self._same]

    def _answers(self, scores: Tensor, query: Tensor | None, k: int, exclude_known: bool) -> list[Prediction]:
        if k < 1:
            raise UserError(f"k must be at least 1; got {k}")
        allowed = torch.ones(len(scores), dtype=torch.bool)
        if query is not None and exclude_known:
            _, answers, _ = self._everything.of(self._everything.find(query[None]))
            allowed[answers] = False
        probabilities = log_probabilities(scores, self.temperature, allowed).exp()
        k = min(k, int(allowed.sum()))
        # Sorted by score, then by number: equal scores come in one order everywhere.
        best = torch.argsort(probabilities.masked_fill(~allowed, -1.0), descending=True, stable=True)[:k]
        found = []
        for entity in best.tolist():
            triple = None if query is None else torch.tensor([[int(query[0]), int(query[1]), entity]])
            holders = (
                [] if triple is None else [s for s, index in self._known.items() if bool(index.contains(triple)[0])]
            )
            found.append(
                Prediction(
                    entity=self.graph.entities[entity],
                    name=self.graph.names[entity],
                    probability=float(probabilities[entity]),
                    rank=1 + int((scores[allowed] > scores[entity]).sum()),
                    known=holders[0] if holders else None,
                    injected=triple is not None and bool(self._injected.contains(triple)[0]),
                    seen=bool(self._seen[entity]),
                )
            )
        return found

    # --- reasons ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explain(
        self, head: str, relation: str, tail: str, *, direction: Literal["tail", "head"] = "tail", limit: int = 5
    ) -> dict[str, Any]:
        """What in the training graph speaks for an answer: facts with the same answer, and facts between the two.

        Args:
            head: id or name of the given entity; with ``direction="head"`` the tail.
            relation: id or text.
            tail: id or name of the answer.
            direction: which end was asked for.
            limit: facts of each kind.

        Returns:
            ``rank`` and ``probability`` of the answer among all entities; ``same_answer``: training facts with the same
            relation and answer, those first whose query looks most alike to the encoder; ``between``: training edges
            that join the two entities; ``shared``: entities that both have an edge with.
        """
        graph = self.graph
        h, t, directed = graph.entity(head), graph.entity(tail), self._directed(relation, direction)
        scores = self.score(torch.tensor([h]), torch.tensor([directed]))[0]
        probability = log_probabilities(scores, self.temperature).exp()[t]
        train = with_inverses(graph.train, graph.num_relations)
        same = train[(train[:, 1] == directed) & (train[:, 2] == t) & (train[:, 0] != h), 0]
        likeness = self._likeness(h, same, directed)
        order = likeness.argsort(descending=True, stable=True)[:limit]
        joined = graph.train[
            ((graph.train[:, 0] == h) & (graph.train[:, 2] == t))
            | ((graph.train[:, 0] == t) & (graph.train[:, 2] == h))
        ]
        near_h, near_t = (train[train[:, 0] == end, 2].unique() for end in (h, t))
        shared = near_h[torch.isin(near_h, near_t)][:limit].tolist()
        return {
            "query": self._describe_query(h, directed),
            "answer": self._entity(t),
            "rank": 1 + int((scores > scores[t]).sum()),
            "probability": round(float(probability), 6),
            "same_answer": [
                {**self._entity(int(same[place])), "likeness": round(float(likeness[place]), 4)} for place in order
            ],
            "between": [self._fact(triple) for triple in joined[:limit].tolist()],
            "shared": [self._entity(entity) for entity in shared],
        }

    def _likeness(self, head: int, others: Tensor, directed: int) -> Tensor:
        """Cosine of queries of the same relation; of score vectors where the encoder has no query vectors."""
        if not len(others):
            return torch.empty(0)
        heads = torch.cat([torch.tensor([head]), others[:256]])
        relations = torch.full_like(heads, directed)
        if self.scorer.has_vectors:
            with self.scorer.encoded():
                vectors = self.scorer.query_vectors(heads, relations)
        else:
            vectors = self.score(heads, relations).softmax(1)
        return F.cosine_similarity(vectors[:1], vectors[1:])

    def _entity(self, entity: int) -> dict[str, Any]:
        return {"entity": self.graph.entities[entity], "name": self.graph.names[entity]}

    def _fact(self, triple: Sequence[int]) -> dict[str, str]:
        h, r, t = triple
        return {"head": self.graph.entities[h], "relation": self.graph.relations[r], "tail": self.graph.entities[t]}

    def _describe_query(self, head: int, directed: int) -> dict[str, Any]:
        relation = self.graph.relations[directed % self.graph.num_relations]
        asked = "head" if directed >= self.graph.num_relations else "tail"
        return {**self._entity(head), "relation": relation, "asks_for": asked}

    # --- new facts ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def complete(
        self, *, top: int = 1000, min_confidence: float = 0.0, per_entity: int = 4, seed: int = 0, batch_size: int = 512
    ) -> list[dict[str, Any]]:
        """The surest new triples, known ones left out: for a curator.

        Only plausible queries are scored: those of the training split (who else?), and relations that an entity's
        own relations make likely.

        Args:
            top: how many triples at most.
            min_confidence: least probability.
            per_entity: plausible new relations tried per entity.
            seed: of their choice.
            batch_size: queries scored at a time.

        Returns:
            dictionaries with ``head``, ``relation``, ``tail`` (ids), ``probability``, ``hit_rate``: how often answers
            of that confidence are validation facts, a lower bound of precision, and ``triple``: the numbers.
        """
        queries = sample_unobserved(self.graph, self._known["train"], seed=seed, cross=per_entity).queries
        confidence, best = self._surest(queries, self._everything, batch_size)
        held = self._known["valid"].queries
        # Answers that are known from other splits stay possible here: a hit must be possible.
        raw, answer = self._surest(held, self._known["train"], batch_size)
        hits = self._known["valid"].contains(torch.cat([held, answer[:, None]], 1))
        curve = ConfidenceCurve(raw, hits)
        r = self.graph.num_relations
        inverse = queries[:, 1] >= r
        triples = torch.stack(
            [torch.where(inverse, best, queries[:, 0]), queries[:, 1] % r, torch.where(inverse, queries[:, 0], best)], 1
        )
        rates = curve(confidence)
        rows: list[dict[str, Any]] = []
        taken: set[tuple[int, ...]] = set()
        for place in confidence.argsort(descending=True, stable=True).tolist():
            triple = tuple(triples[place].tolist())
            if float(confidence[place]) < min_confidence or len(rows) == top:
                break
            if triple in taken:
                continue
            taken.add(triple)
            rows.append(
                {
                    **self._fact(triple),
                    "probability": round(float(confidence[place]), 6),
                    "hit_rate": round(float(rates[place]), 4),
                    "triple": triple,
                }
            )
        return rows

    def _surest(self, queries: Tensor, known: AnswerIndex, batch_size: int) -> tuple[Tensor, Tensor]:
        """Probability and number of the best unknown answer of each query."""
        confidences, answers = [], []
        with self.scorer.encoded():
            for part in queries.split(batch_size):
                scores = self.score(part[:, 0], part[:, 1])
                allowed = torch.ones_like(scores, dtype=torch.bool)
                owner, known_answers, _ = known.of(known.find(part))
                allowed[owner, known_answers] = False
                best = log_probabilities(scores, self.temperature, allowed).max(1)
                confidences.append(best.values.exp())
                answers.append(best.indices)
        return torch.cat(confidences), torch.cat(answers)

    def rank_of(self, triples: Sequence[Sequence[int]]) -> list[int]:
        """Rank of each triple's tail among all candidates that are not known."""
        rows = torch.tensor([list(triple) for triple in triples]).reshape(-1, 3)
        ranks: list[int] = []
        with self.scorer.encoded():
            for part in rows.split(512):
                scores = self.score(part[:, 0], part[:, 1])
                own = scores.gather(1, part[:, 2:])
                owner, answers, _ = self._everything.of(self._everything.find(part[:, :2]))
                others = answers != part[owner, 2]
                scores[owner[others], answers[others]] = -torch.inf
                ranks += (1 + (scores > own).sum(1)).tolist()
        return ranks

    # --- files --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, **extra: Any) -> Manifest:
        """Write the encoder, its graph and its calibration; the other encoder is not needed to load them.

        Args:
            folder: made if need be.
            **extra: further plain values for the manifest.

        Raises:
            UserError: it is not known how the encoder was built.
        """
        if self.builder is None:
            raise UserError("this student does not know how its encoder is built: make it with builder and arguments")
        folder = Path(folder)
        edges = getattr(self.scorer, "kinds", None)
        save_graph(self.graph, folder, injected=self.injected)
        arguments = dict(self.arguments)
        save_assets: Any = getattr(self.scorer, "save_assets", None)
        if save_assets is not None:
            save_assets(folder / TEXT_MODEL)
            arguments["checkpoint"] = TEXT_MODEL
        return save_model(
            folder,
            self.scorer,
            system=SYSTEM,
            builder=self.builder,
            arguments={"arguments": arguments, "factory": self.factory},
            extra={"temperature": self.temperature, "edges": 0 if edges is None else len(edges) // 2, **extra},
        )

    @classmethod
    def load(cls, folder: str | Path, factory: str | None = None) -> "Student":
        """Read what `save` wrote.

        Args:
            folder: of a run, or of one of its students.
            factory: must repeat the factory of an encoder of the user's own: a manifest alone never runs code.

        Raises:
            UserError: the folder holds no student, or its files are damaged or do not fit.
        """
        folder = Path(folder)
        manifest = load_manifest(folder, SYSTEM)
        refuse_code(manifest, factory)
        arguments, temperature, edges = saved_settings(manifest, folder)
        graph, more = read_graph(folder)
        built = dict(arguments)
        if "checkpoint" in built:
            built |= {"checkpoint": str(folder / TEXT_MODEL), "weights": False}
        named = factory if manifest.builder == "factory" else None
        with no_larger_than_its_files(folder, manifest.arguments):
            scorer = build_encoder(manifest.builder, graph, built, named)
            if edges:
                zeros = torch.zeros(edges, dtype=torch.int64)
                scorer.set_graph(torch.zeros(2, edges, dtype=torch.int64), zeros, torch.ones(edges))
        load_weights(scorer, folder)
        return cls(scorer, graph, temperature, more.get("injected"), manifest.builder, arguments, named)


def as_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as plain values, probabilities to six digits."""
    return [asdict(prediction) | {"probability": round(prediction.probability, 6)} for prediction in predictions]


def load(folder: str | Path, *, factory: str | None = None) -> Student:
    """The encoder of a run or a model folder, ready to answer; see `Student.load`.

    Args:
        folder: of a run, or of one of its students.
        factory: allows by name the function that makes an encoder of the user's own.
    """
    return Student.load(folder, factory)
