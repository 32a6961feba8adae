"""The steps of the experiment, each a unit of resumable work: preparation, stage 1, rates, arms, baselines."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.files import read_json, write_atomically
from tenfold.run import Run
from tenfold.sparse import find_mask
from tenfold.systems.query_summarizer.encoders.sentence_vectors import load_sentence_vectors
from tenfold.systems.query_summarizer.experiment.settings import Arm, Config, arms_of
from tenfold.systems.query_summarizer.extractor.baselines import (
    TfIdfExtractor,
    lead_scores,
    random_scores,
)
from tenfold.systems.query_summarizer.extractor.build_extractor import (
    chosen_vectors,
    new_qbert,
    new_scorer,
)
from tenfold.systems.query_summarizer.extractor.fast_scorer import FastScorer, match_features
from tenfold.systems.query_summarizer.extractor.pack_windows import Packing
from tenfold.systems.query_summarizer.extractor.qbert import QBert
from tenfold.systems.query_summarizer.extractor.train_extractor import train_extractor
from tenfold.systems.query_summarizer.extractor.window_batches import TokenWindows, VectorWindows, single_windows
from tenfold.systems.query_summarizer.labels.oracle import hard_labels, soft_labels
from tenfold.systems.query_summarizer.method import choose_subnetwork
from tenfold.systems.query_summarizer.rouge.scoring import DUC_MEASURES, Rouge
from tenfold.systems.query_summarizer.rouge.stemming import find_exceptions
from tenfold.systems.query_summarizer.selection.summary import Summary, make_summary
from tenfold.systems.query_summarizer.sets.load_sets import Sets, load_sets
from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.workers import Step

_SHORT = {"ROUGE-1": "r1", "ROUGE-2": "r2", "ROUGE-SU4": "su4"}


def open_place(config: Config, folder: Path) -> "Place":
    """What every step needs, made once per process."""
    return Place(config, load_sets(**asdict(config.data)), folder)


def start_of(arm: Arm) -> str:
    """Name of the stage 1 that an arm starts from."""
    return "stage1" if arm.query else "stage1-no-query"


class Place:
    """The data of a run and the steps that are done on them; calling it does one.

    Args:
        config: the settings.
        sets: what is trained and tested on.
        folder: of the run.
    """

    def __init__(self, config: Config, sets: Sets, folder: Path) -> None:
        self.config, self.sets, self.folder = config, sets, folder
        self.arms = arms_of(config)
        self.rouge = make_rouge(config.selection.words)
        self._prepared: dict[str, Any] = {}
        self._table: dict[str, Tensor] = {}
        self._cosines: dict[str, Tensor] = {}

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """Do a step."""
        kind, *arguments = step.arguments
        report = partial(_report, run, step.name)
        if kind == "prepare":
            return self.prepare(folder)
        if kind == "stage1":
            return self.stage1(arguments[0] == "stage1", arguments[1], folder, report)
        if kind == "baseline":
            return self.baseline(arguments[0], arguments[1])
        if kind == "rate":
            return self.choose_rate(arguments[0], folder)
        return self.train_arm(arguments[0], arguments[1], folder, report)

    # --- preparation ----------------------------------------------------------------------------------------------

    def prepare(self, folder: Path) -> dict[str, Any]:
        """Sentence vectors of all documents and queries (fast extractor), and oracle labels of the training topics."""
        topics = [*self.sets.stage1, *self.sets.train, *self.sets.held_back, *self.sets.test]
        if self.config.model.kind == "fast":
            vectors = load_sentence_vectors(chosen_vectors(self.config.model.encoder))
            documents = {document.id: document for topic in topics for document in topic.documents}
            texts: list[str] = []
            rows = {}
            for name, document in documents.items():
                rows[name] = (len(texts), len(texts) + len(document.sentences))
                texts += [sentence.text for sentence in document.sentences]
            encoded = {
                "table": vectors.encode(texts).half(),
                "queries": vectors.encode([t.query for t in topics]).half(),
            }
            save_file(encoded, folder / "vectors.safetensors")
            write_atomically(folder / "rows.json", _json({"rows": rows, "topics": [topic.id for topic in topics]}))
        labels = {topic.id: self._label(topic) for topic in [*self.sets.stage1, *self.sets.train]}
        write_atomically(folder / "labels.json", _json(labels))
        positive = sum(map(sum, labels.values()))
        return {"topics": len(topics), "labelled": len(labels), "positive": positive}

    def _label(self, topic: Topic) -> list[float]:
        if topic.labels:
            return list(topic.labels)
        if self.config.labels == "soft":
            return soft_labels(topic.texts, topic.references)
        longest = max(len(" ".join(reference).split()) for reference in topic.references)
        return hard_labels(topic.texts, topic.references, min(self.config.selection.words, longest))

    def _labels(self, topics: Sequence[Topic]) -> list[list[float]]:
        if not self._prepared:
            self._prepared = read_json(self.folder / "steps/preparation/labels.json")
        return [self._prepared[topic.id] for topic in topics]

    def _words(self, topics: Sequence[Topic]) -> list[Tensor]:
        """TF-IDF cosines of each topic's sentences with its query; they depend on the topic alone, and are kept."""
        for topic in topics:
            if topic.id not in self._cosines:
                self._cosines[topic.id] = TfIdfExtractor().score(topic.query, topic.documents).float()
        return [self._cosines[topic.id] for topic in topics]

    def _vectors(self) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]], dict[str, int]]:
        place = self.folder / "steps/preparation"
        if not self._table:
            self._table = {name: value.float() for name, value in load_file(place / "vectors.safetensors").items()}
            self._rows = read_json(place / "rows.json")
        rows = {name: (first, last) for name, (first, last) in self._rows["rows"].items()}
        return self._table, rows, {name: number for number, name in enumerate(self._rows["topics"])}

    # --- training -------------------------------------------------------------------------------------------------

    def batches(
        self, model: nn.Module, topics: Sequence[Topic], batch_size: int, seed: int, query: bool
    ) -> VectorWindows | TokenWindows:
        """Training windows of some topics for a model."""
        labels = self._labels(topics)
        if isinstance(model, QBert):
            return TokenWindows(model, topics, labels, batch_size, seed=seed, masked=not query)
        table, rows, numbers = self._vectors()
        queries = table["queries"][[numbers[topic.id] for topic in topics]]
        if not query:
            queries = torch.zeros_like(queries)
        words = self._words(topics) if query else None
        return VectorWindows(topics, labels, table["table"], rows, queries, words, batch_size, seed=seed)

    def new_model(self, seed: int) -> QBert | FastScorer:
        """The extractor before any training."""
        options, positives = self.config.model, self._labels(self.sets.train)
        flat = [value for own in positives for value in own]
        prior = min(max(sum(value > 0.5 for value in flat) / len(flat), 1e-3), 1 - 1e-3)
        if options.kind == "fast":
            width = self._vectors()[0]["table"].shape[1]
            return new_scorer(width, prior, seed, options.arguments)
        return new_qbert(
            options.encoder,
            [text for topic in [*self.sets.stage1, *self.sets.train] for text in (topic.query, *topic.texts)],
            seed,
            arguments=options.arguments,
            packing=Packing(max_tokens=options.max_tokens, segments=options.segments)
            if options.max_tokens >= 256
            else Packing(options.max_tokens, options.max_tokens // 4, options.max_tokens // 2, options.segments),
            inter_layers=options.inter_layers,
            prior=prior,
        )

    def stage1(self, query: bool, seed: int, folder: Path, report: Any) -> dict[str, Any]:
        """Train on the large set; the weights are kept for all arms of this seed."""
        model, stage = self.new_model(seed), self.config.stage1
        torch.manual_seed(seed)
        fitted, _ = train_extractor(
            model,
            self.batches(model, self.sets.stage1, stage.batch_size, seed, query),
            folder,
            epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            weight_decay=stage.weight_decay,
            warmup=stage.warmup,
            options=self.config.trainer,
            validate=lambda module: self.held_back(module, query),
            select="r2",
            on_epoch=lambda epoch, row: report(epoch, stage.epochs, row),
        )
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "weights.safetensors"
        )
        return {"history": fitted.history, "best_epoch": fitted.best_epoch, "seconds": fitted.seconds}

    def _stage2(self, arm: Arm, seed: int, rate: float, folder: Path, report: Any = None) -> tuple[nn.Module, Any, Any]:
        model, stage = self.new_model(seed), self.config.stage2
        if arm.stage1:
            model.load_state_dict(load_file(self.folder / f"steps/{start_of(arm)}/seed{seed}/weights.safetensors"))
        batches = self.batches(model, self.sets.train, stage.batch_size, seed, arm.query)
        train = partial(
            train_extractor,
            batches=batches,
            epochs=stage.epochs,
            learning_rate=rate * stage.learning_rate,
            weight_decay=stage.weight_decay,
            warmup=stage.warmup,
            options=self.config.trainer,
            validate=lambda module: self.held_back(module, arm.query),
            select="r2",
            on_epoch=report,
        )
        mask = None
        if arm.criterion == "change":
            mask = find_mask(
                model,
                fraction=arm.fraction,
                criterion="change",
                granularity=self.config.sparse.granularity,
                dense=["head.*"],
                train=lambda module: train(module, folder=folder / "change"),
            )
        elif arm.criterion:
            mask = choose_subnetwork(
                model,
                single_windows(batches),
                fraction=arm.fraction,
                criterion=arm.criterion,
                granularity=self.config.sparse.granularity,
                seed=seed,
            )
        torch.manual_seed(seed)
        fitted, cost = train(model, folder=folder / f"rate{rate:g}", mask=mask)
        return model, fitted, cost

    def choose_rate(self, name: str, folder: Path) -> dict[str, Any]:
        """The learning rate of an arm, as a multiple of stage 2's: the best on the held-back topics, first seed."""
        if len(self.config.sparse.rates) == 1:
            return {"rate": self.config.sparse.rates[0], "scores": []}
        scores = {}
        for rate in self.config.sparse.rates:
            _, fitted, _ = self._stage2(self.arms[name], self.config.seed, rate, folder)
            scores[rate] = max(row["validation/r2"] for row in fitted.history)
        return {
            "rate": max(scores, key=lambda rate: (scores[rate], -rate)),
            "scores": [[r, s] for r, s in scores.items()],
        }

    def train_arm(self, name: str, seed: int, folder: Path, report: Any) -> dict[str, Any]:
        """Train one arm with one seed and measure it on the test topics."""
        arm = self.arms[name]
        more: dict[str, Any] = {}
        if not arm.stage2:
            model: nn.Module = self.new_model(seed)
            model.load_state_dict(load_file(self.folder / f"steps/{start_of(arm)}/seed{seed}/weights.safetensors"))
        else:
            rate = read_json(self.folder / f"steps/rates/{name}/result.json")["rate"]
            epochs = self.config.stage2.epochs
            model, fitted, cost = self._stage2(arm, seed, rate, folder, lambda epoch, row: report(epoch, epochs, row))
            diff = cost.pop("diff")
            if diff is not None:
                cost["diff_bytes"] = diff.save(folder / "diff").stat().st_size
            more = {
                "history": fitted.history,
                "best_epoch": fitted.best_epoch,
                "train_seconds": fitted.seconds,
                "held_back_r2": max(row["validation/r2"] for row in fitted.history),
                **cost,
            }
        model.eval()
        _save(model, folder)
        return self.measure([self.summarize(model, topic, arm.query) for topic in self.sets.test]) | more

    # --- measuring ------------------------------------------------------------------------------------------------

    def score(self, model: nn.Module, topic: Topic, query: bool) -> Tensor:
        """Scores of a topic's sentences, from the kept vectors where there are any."""
        if isinstance(model, QBert):
            return model.score(topic.query, topic.documents, masked=not query)
        assert isinstance(model, FastScorer)
        table, rows, numbers = self._vectors()
        asked = table["queries"][numbers[topic.id]]
        documents = [table["table"][slice(*rows[document.id])] for document in topic.documents]
        asked, words = (asked, self._words([topic])[0]) if query else (torch.zeros_like(asked), torch.zeros(1))
        vectors = torch.cat(documents)
        return model.score_vectors(asked, documents, match_features(asked, vectors, words.expand(len(vectors))))

    def summarize(self, model: nn.Module, topic: Topic, query: bool) -> list[str]:
        """Lines of a topic's summary."""
        return _lines(self.config, topic, self.score(model, topic, query))

    def held_back(self, model: nn.Module, query: bool) -> dict[str, float]:
        """ROUGE-2 recall on the held-back topics, in points."""
        topics = self.sets.held_back
        scores = [self.rouge.score(self.summarize(model, t, query), t.references)["ROUGE-2"].recall for t in topics]
        return {"r2": 100 * sum(scores) / len(scores)}

    def baseline(self, name: str, seed: int) -> dict[str, Any]:
        """One of the ways to score sentences without training."""
        topics = self.sets.test
        if name == "cosine":
            table, rows, numbers = self._vectors()
            scores = [
                torch.cat([table["table"][slice(*rows[document.id])] for document in topic.documents])
                @ table["queries"][numbers[topic.id]]
                for topic in topics
            ]
        elif name == "tfidf":
            scores = [TfIdfExtractor().score(topic.query, topic.documents) for topic in topics]
        elif name == "lead":
            scores = [lead_scores(topic.documents) for topic in topics]
        else:
            scores = [random_scores(topic.documents, 1000 * seed + number) for number, topic in enumerate(topics)]
        lines = [_lines(self.config, topic, own) for topic, own in zip(topics, scores, strict=True)]
        return self.measure(lines)

    def measure(self, lines: Sequence[Sequence[str]]) -> dict[str, Any]:
        """ROUGE recall and F over the test topics in points, by topic too, and without the topics about a plot."""
        topics = self.sets.test
        found = self.rouge.corpus(
            {str(number): own for number, own in enumerate(lines)},
            {str(number): topic.references for number, topic in enumerate(topics)},
        )
        answer: dict[str, Any] = {}
        for measure, short in _SHORT.items():
            score = found[measure]
            by_topic = [100 * score.topics[str(number)].recall for number in range(len(topics))]
            answer[short] = sum(by_topic) / len(by_topic)
            answer[f"{short}_f"] = 100 * score.f.plain_mean
            answer[f"{short}_interval"] = [100 * score.recall.low, 100 * score.recall.high]
            answer[f"{short}_by_topic"] = by_topic
            rest = [value for value, topic in zip(by_topic, topics, strict=True) if topic.domain != "plot"]
            answer[f"{short}_no_plot"] = sum(rest) / len(rest) if rest else None
        return answer


def make_rouge(words: int) -> Rouge:
    """The scorer of a run: exact where the lists of irregular forms are at hand, else by Porter's rules alone."""
    return Rouge(DUC_MEASURES, limit=words, stem="wordnet" if find_exceptions() else "porter")


def _lines(config: Config, topic: Topic, scores: Tensor) -> list[str]:
    made = summary_with(config, topic, scores)
    return made.lines


def summary_with(config: Config, topic: Topic, scores: Tensor, masked: Tensor | None = None) -> Summary:
    """The summary of a topic by the settings of the run."""
    return make_summary(
        topic.query,
        topic.documents,
        scores.double().numpy(),
        scorer="query-summarizer",
        words=config.selection.words,
        block=config.selection.block,
        without_query=None if masked is None else masked.double().numpy(),
    )


def _save(model: nn.Module, folder: Path) -> None:
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")


def _report(run: Run, name: str, epoch: int, epochs: int, row: dict[str, float]) -> None:
    run.progress(name, epoch, epochs, f"loss {row['train/loss']:.3f}, held-back R-2 {row['validation/r2']:.2f}")


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
