"""The steps of the experiment, each a unit of resumable work: vectors, labels, stage 1, rates, arms, baselines."""

import shutil
from collections.abc import Mapping, Sequence
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
from tenfold.systems.query_summarizer.experiment.scores import make_rouge, measure, summary_with
from tenfold.systems.query_summarizer.experiment.settings import Arm, Config, arms_of, sets_arguments
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
from tenfold.systems.query_summarizer.sets.load_sets import Sets, load_sets
from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.workers import Step

VECTOR_STEPS = 4
"""Steps that share the work of encoding sentences; a number of its own, so that any number of workers resumes it."""


def open_place(config: Config, folder: Path) -> "Place":
    """What every step needs, made once per process."""
    return Place(config, load_sets(**sets_arguments(config.preset, asdict(config.data))), folder)


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
        if kind == "vectors":
            return self.encode(arguments[0], folder)
        if kind == "labels":
            return self.label(folder)
        if kind == "stage1":
            return self.stage1(arguments[0] == "stage1", arguments[1], folder, report)
        if kind == "baseline":
            return self.baseline(arguments[0], arguments[1])
        if kind == "rate":
            return self.train_stage2(arguments[0], self.config.seed, arguments[1], folder, report)
        return self.arm(arguments[0], arguments[1], folder, report)

    # --- preparation ----------------------------------------------------------------------------------------------

    def encode(self, share: int, folder: Path) -> dict[str, Any]:
        """Sentence vectors of a share of the documents and queries, for the fast extractor."""
        topics = self._all_topics()
        documents = list({document.id: document for topic in topics for document in topic.documents}.values())
        rows: dict[str, tuple[int, int]] = {}
        texts: list[str] = []
        for document in documents[share::VECTOR_STEPS]:
            rows[document.id] = (len(texts), len(texts) + len(document.sentences))
            texts += [sentence.text for sentence in document.sentences]
        vectors = load_sentence_vectors(chosen_vectors(self.config.model.encoder))
        asked = topics[share::VECTOR_STEPS]
        encoded = {"table": vectors.encode(texts).half(), "queries": vectors.encode([t.query for t in asked]).half()}
        save_file(encoded, folder / "vectors.safetensors")
        write_atomically(folder / "rows.json", _json({"rows": rows, "topics": [topic.id for topic in asked]}))
        return {"sentences": len(texts), "queries": len(asked)}

    def label(self, folder: Path) -> dict[str, Any]:
        """Oracle labels of the training topics."""
        labels = {topic.id: self._label(topic) for topic in [*self.sets.stage1, *self.sets.train]}
        write_atomically(folder / "labels.json", _json(labels))
        return {"labelled": len(labels), "positive": sum(map(sum, labels.values()))}

    def _all_topics(self) -> list[Topic]:
        return [*self.sets.stage1, *self.sets.train, *self.sets.held_back, *self.sets.test]

    def _label(self, topic: Topic) -> list[float]:
        if topic.labels:
            return list(topic.labels)
        if self.config.labels == "soft":
            return soft_labels(topic.texts, topic.references)
        return hard_labels(topic.texts, topic.references, self.config.selection.words)

    def _labels(self, topics: Sequence[Topic]) -> list[list[float]]:
        if not self._prepared:
            self._prepared = read_json(self.folder / "steps/labels/labels.json")
        return [self._prepared[topic.id] for topic in topics]

    def _words(self, topics: Sequence[Topic]) -> list[Tensor]:
        """TF-IDF cosines of each topic's sentences with its query; they depend on the topic alone, and are kept."""
        for topic in topics:
            if topic.id not in self._cosines:
                self._cosines[topic.id] = TfIdfExtractor().score(topic.query, topic.documents).float()
        return [self._cosines[topic.id] for topic in topics]

    def _vectors(self) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]], dict[str, int]]:
        """Vectors of sentences and queries, rows of each document's sentences, row of each topic's query."""
        if not self._table:
            parts: dict[str, list[Tensor]] = {"table": [], "queries": []}
            self._rows: dict[str, tuple[int, int]] = {}
            asked: list[str] = []
            first = 0
            for share in range(VECTOR_STEPS):
                place = self.folder / f"steps/vectors/{share}"
                encoded, known = load_file(place / "vectors.safetensors"), read_json(place / "rows.json")
                for name, value in encoded.items():
                    parts[name].append(value.float())
                self._rows |= {name: (first + start, first + stop) for name, (start, stop) in known["rows"].items()}
                asked += known["topics"]
                first += len(encoded["table"])
            self._table = {name: torch.cat(values) for name, values in parts.items()}
            self._numbers = {name: number for number, name in enumerate(asked)}
        return self._table, self._rows, self._numbers

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

    def train_stage2(self, name: str, seed: int, rate: float, folder: Path, report: Any) -> dict[str, Any]:
        """Train one arm on the target with one seed and rate; its weights and diff stay in the step's folder."""
        epochs = self.config.stage2.epochs
        model, fitted, cost = self._stage2(
            self.arms[name], seed, rate, folder, lambda epoch, row: report(epoch, epochs, row)
        )
        diff = cost.pop("diff")
        if diff is not None:
            cost["diff_bytes"] = diff.save(folder / "diff").stat().st_size
        _save(model, folder)
        return {
            "history": fitted.history,
            "best_epoch": fitted.best_epoch,
            "train_seconds": fitted.seconds,
            "held_back_r2": max(row["validation/r2"] for row in fitted.history),
            **cost,
        }

    def rate_of(self, name: str) -> dict[str, Any]:
        """The learning rate of an arm, as a multiple of stage 2's: the best on the held-back topics, first seed."""
        rates = self.config.sparse.rates
        if len(rates) == 1:
            return {"rate": rates[0], "scores": []}
        return best_rate({rate: read_json(self._tried(name, rate) / "result.json") for rate in rates})

    def _tried(self, name: str, rate: float) -> Path:
        return self.folder / f"steps/rates/{name}/{rate:g}"

    def arm(self, name: str, seed: int, folder: Path, report: Any) -> dict[str, Any]:
        """Train one arm with one seed, unless its rate was chosen by the very same training, and measure it."""
        arm = self.arms[name]
        more: dict[str, Any] = {}
        if arm.stage2:
            rate = self.rate_of(name)["rate"]
            tried = self._tried(name, rate)
            if seed == self.config.seed and (tried / "result.json").exists():
                more = read_json(tried / "result.json")
                for file in ("weights.safetensors", "diff.sft.safetensors"):
                    if (tried / file).exists():
                        shutil.copyfile(tried / file, folder / file)
            else:
                more = self.train_stage2(name, seed, rate, folder, report)
        source = folder if arm.stage2 else self.folder / f"steps/{start_of(arm)}/seed{seed}"
        model = self.new_model(seed)
        model.load_state_dict(load_file(source / "weights.safetensors"))
        model.eval()
        if not arm.stage2:
            _save(model, folder)
        return (
            measure(self.rouge, self.sets.test, [self.summarize(model, topic, arm.query) for topic in self.sets.test])
            | more
        )

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
        return summary_with(self.config, topic, self.score(model, topic, query)).lines

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
            scores = self._words(topics)
        elif name == "lead":
            scores = [lead_scores(topic.documents) for topic in topics]
        else:
            scores = [random_scores(topic.documents, 1000 * seed + number) for number, topic in enumerate(topics)]
        lines = [summary_with(self.config, topic, own).lines for topic, own in zip(topics, scores, strict=True)]
        return measure(self.rouge, topics, lines)


def best_rate(tried: Mapping[float, Mapping[str, Any]]) -> dict[str, Any]:
    """The rate whose training is best on the held-back topics; among equals the smallest."""
    scores = {rate: found["held_back_r2"] for rate, found in tried.items()}
    best = max(scores, key=lambda rate: (scores[rate], -rate))
    return {"rate": best, "scores": [[rate, score] for rate, score in scores.items()]}


def _save(model: nn.Module, folder: Path) -> None:
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "weights.safetensors")


def _report(run: Run, name: str, epoch: int, epochs: int, row: dict[str, float]) -> None:
    run.progress(name, epoch, epochs, f"loss {row['train/loss']:.3f}, held-back R-2 {row['validation/r2']:.2f}")


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
