"""The method (arXiv 2211.02791): candidates inherit from one trained seed, evolution keeps accuracy and cost apart.


    train the seed detector S                                          -> theta0
    every candidate a:   theta = map(theta0, S -> a)                   map_weights
                         short tuning, batch statistics                evaluate
                         (score on the search split, cost)             SearchTask
    NSGA-II over generations                                           evolution
    promotion: the front's best, tuned longer                          promote
    chosen budget: map once more, train to the end, test once          experiment

That candidates are tuned shortly, and statistics re-estimated, is a reconstruction (the abstract
names only the mapping); so is promotion. Nothing here knows files or commands; any other triple of space, training
and score is a ``SearchTask``, too.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from tenfold.seeds import derived_seed
from tenfold.systems.backbone_search.data.average_precision import average_precision, detect_all
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite
from tenfold.systems.backbone_search.evolution.candidates import Evaluation, SearchTask
from tenfold.systems.backbone_search.mapping.batch_statistics import reestimate_batch_norm
from tenfold.systems.backbone_search.mapping.channels import Growth, Importance
from tenfold.systems.backbone_search.mapping.depth import Deepen
from tenfold.systems.backbone_search.mapping.map_weights import Rule, map_weights, nearest_parent
from tenfold.systems.backbone_search.objectives.costs import count_costs
from tenfold.systems.backbone_search.space.darknet_space import DarknetSpace
from tenfold.systems.backbone_search.space.mobile_space import MobileSpace
from tenfold.systems.backbone_search.space.search_space import Genome
from tenfold.systems.backbone_search.training.options import DetectorTraining
from tenfold.systems.backbone_search.training.train_detector import train_detector
from tenfold.training.options import TrainerOptions

STATISTICS_IMAGES, STATISTICS_BATCH = 512, 64
"""Training images that batch statistics are estimated on at most, and how many at a time."""


@dataclass
class CandidateOptions:
    """How a candidate is made and judged.

    Attributes:
        mapping: ``tenfold`` or ``fna``, see ``map_weights``; ``none`` begins from scratch.
        importance: which channels stay.
        growth: how new channels begin.
        deepen: how new blocks begin.
        parts: what is mapped, the whole ``detector`` or the ``backbone``.
        statistics: estimate batch statistics afresh, after mapping (where the network is scored as it is) and after
            tuning.
        inherit: from the ``seed``, or from the nearest evaluated ``parent`` (Lamarck; one worker).
        untuned: also score before tuning, to see what a cheaper score would have said.
    """

    mapping: Literal["tenfold", "fna", "none"] = "tenfold"
    importance: Importance = "l1"
    growth: Growth = "live"
    deepen: Deepen = "identity"
    parts: Literal["detector", "backbone"] = "detector"
    statistics: bool = True
    inherit: Literal["seed", "parent"] = "seed"
    untuned: bool = False


@dataclass
class DetectorSearch:
    """A search among detectors: builds, costs, trains and scores genomes.

    Attributes:
        space: genes.
        template: neck, head and classes; its backbone is replaced.
        seed_model: the trained seed; not needed for costs.
        fit: images to learn from.
        search: images to score on.
        tuning: the short training.
        options: see ``CandidateOptions``.
        seed: of order and draws, beside the genome's hash.
        trainer: where it runs.
        most_detections: of an image, that count.
        weights: folder for the candidates' weights, by hash; none are kept where ``None``.
        cache: folder of evaluations that are reused by hash; none where ``None``.
        latency: further costs of a plan, such as milliseconds; called with plan, height and width.
    """

    space: MobileSpace | DarknetSpace
    template: DetectorPlan
    seed_model: YOLOXLite | None
    fit: LetterboxedImages
    search: LetterboxedImages
    tuning: DetectorTraining
    options: CandidateOptions = field(default_factory=CandidateOptions)
    seed: int = 0
    trainer: TrainerOptions | None = None
    most_detections: int = 100
    weights: Path | None = None
    cache: Path | None = None
    latency: Callable[[DetectorPlan, int, int], Mapping[str, float]] | None = None

    def plan(self, genome: Mapping[str, Any]) -> DetectorPlan:
        """The detector of a genome."""
        return replace(self.template, backbone=self.space.plan(genome))

    def size(self, genome: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of a genome's input."""
        return self.space.input_size(genome) or (self.fit.height, self.fit.width)

    def costs(self, genome: Genome) -> dict[str, float]:
        """Costs of a genome at the size at which it is deployed."""
        plan, (height, width) = self.plan(genome), self.size(genome)
        found: dict[str, float] = dict(count_costs(plan, height, width))
        if self.latency is not None:
            found |= self.latency(plan, height, width)
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what scores depend on beside the genome: seed weights, data, tuning, rules."""
        digest = hashlib.sha256()
        if self.seed_model is not None:
            for name, value in sorted(self.seed_model.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
        for part in (self.fit, self.search):
            digest.update("".join(part.data.digests()).encode())
        facts = [asdict(self.tuning), asdict(self.options), self.seed, self.template.to_dict(), self.most_detections]
        facts += [self.fit.height, self.fit.width]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        return digest.hexdigest()

    def evaluate(self, genome: Mapping[str, Any], digest: str) -> Evaluation:
        """Map, tune and score a genome; the same for one genome in every process."""
        known = self.cache / f"{digest}.json" if self.cache is not None else None
        saved = json.loads(known.read_text()) if known is not None and known.exists() else None
        if saved is None:
            started = time.perf_counter()
            model, details = self.tuned(genome, digest)
            saved = {"score": self.score(model, genome), "details": details}
            details["seconds"] = round(time.perf_counter() - started, 3)
            if self.weights is not None:
                self._keep(model, genome, digest)
        if self.options.untuned and "untuned" not in saved["details"]:
            saved["details"]["untuned"] = self.untuned(genome, digest)
        if known is not None:
            temporary = known.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(saved))
            temporary.replace(known)
        details = {k: v for k, v in saved["details"].items() if k != "untuned" or self.options.untuned}
        return Evaluation(saved["score"], details)

    def tuned(self, genome: Mapping[str, Any], digest: str) -> tuple[YOLOXLite, dict[str, Any]]:
        """A genome's detector, mapped and shortly tuned, and what the mapping did; the same in every process."""
        model, details = self.prepared(genome, derived_seed(self.seed, int(digest[:12], 16)))
        self.tune(model, genome, self.tuning, derived_seed(self.seed, int(digest[:12], 16), 1))
        return model, details

    def untuned(self, genome: Mapping[str, Any], digest: str) -> float:
        """The score of a genome after mapping and batch statistics alone: what a screen goes by."""
        model, _ = self.prepared(genome, derived_seed(self.seed, int(digest[:12], 16)), judged=True)
        return self.score(model, genome)

    def prepared(self, genome: Mapping[str, Any], seed: int, judged: bool = False) -> tuple[YOLOXLite, dict[str, Any]]:
        """A genome's detector before tuning, and what the mapping did.

        Args:
            genome: whole.
            seed: of fresh weights and draws.
            judged: it is scored as it is, so that its batch statistics must be right; before a tuning they need not
                be, since training takes those of its batches and estimates the running ones when it has ended.
        """
        torch.manual_seed(seed)
        model, options = YOLOXLite(self.plan(genome)), self.options
        details: dict[str, Any] = {}
        if options.mapping != "none":
            if self.seed_model is None:
                raise ValueError("weights are to be mapped, but the search has no seed model")
            rule: Rule = options.mapping
            report = map_weights(
                self._source(genome), model, rule, importance=options.importance, growth=options.growth,
                deepen=options.deepen, parts=options.parts, seed=seed,
            )  # fmt: skip
            details["inherited"] = round(report.inherited, 4)
            # A mapping that keeps the function has the right statistics already: estimating them again only adds noise.
            if judged and options.statistics and not report.preserves_function:
                self.estimate(model, genome)
        return model, details

    def _source(self, genome: Mapping[str, Any]) -> YOLOXLite:
        assert self.seed_model is not None
        if self.options.inherit == "seed" or self.weights is None:
            return self.seed_model
        parents = {path.stem: json.loads(path.read_text()) for path in self.weights.glob("*.json")}
        nearest = nearest_parent(self.space.canonical(genome), parents)
        if nearest is None:
            return self.seed_model
        model = YOLOXLite(self.plan(self.space.complete(parents[nearest])))
        model.load_state_dict(load_file(self.weights / f"{nearest}.safetensors"))
        return model

    def _keep(self, model: YOLOXLite, genome: Mapping[str, Any], digest: str) -> None:
        assert self.weights is not None
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        temporary = self.weights / f".{digest}.tmp"
        save_file(state, temporary)
        temporary.replace(self.weights / f"{digest}.safetensors")
        (self.weights / f"{digest}.json").write_text(json.dumps(self.space.canonical(genome)))

    def tune(self, model: YOLOXLite, genome: Mapping[str, Any], training: DetectorTraining, seed: int) -> None:
        """Train a candidate, and estimate its statistics again."""
        with tempfile.TemporaryDirectory() as folder:
            train_detector(
                model, self.fit, training, folder=Path(folder), seed=seed, trainer=self.trainer, size=self.size(genome)
            )
        if self.options.statistics:
            self.estimate(model, genome)

    def estimate(self, model: YOLOXLite, genome: Mapping[str, Any]) -> None:
        """Batch statistics on training images as they are."""
        count = min(len(self.fit), STATISTICS_IMAGES)
        batch = min(STATISTICS_BATCH, count)
        size = self.size(genome)

        def batches() -> Any:
            for start in range(0, count - batch + 1, batch):
                images = self.fit[list(range(start, start + batch))].float()
                yield (
                    images
                    if images.shape[-2:] == size
                    else torch.nn.functional.interpolate(images, size, mode="bilinear")
                )

        reestimate_batch_norm(model, batches())

    def score(self, model: YOLOXLite, genome: Mapping[str, Any], images: LetterboxedImages | None = None) -> float:
        """Mean average precision of a detector, on the search split unless told otherwise."""
        images = images or self.search
        found = detect_all(model, images, most=self.most_detections, size=self.size(genome))
        return float(average_precision(found, images.data, self.most_detections)["map"])  # type: ignore[arg-type]

    def task(
        self, objectives: Sequence[str] = ("multiply_adds",), limits: Mapping[str, float] | None = None,
        initial: Sequence[Genome] = (),
    ) -> SearchTask:  # fmt: skip
        """The search as evolution takes it."""
        return SearchTask(
            self.space, self.costs, self.evaluate, tuple(objectives), dict(limits or {}), self.fingerprint, initial,
            cheap=self.untuned,
        )  # fmt: skip


def promote(
    search: DetectorSearch, genomes: Sequence[Mapping[str, Any]], training: DetectorTraining, repeats: int = 2
) -> list[list[float]]:
    """Score genomes again after a longer training, several times: a short score favours what keeps most of the seed.

    Args:
        search: the problem.
        genomes: canonical or whole.
        training: the longer training.
        repeats: trainings of each, with seeds of their own.

    Returns:
        For each genome the scores of its trainings.
    """
    scores = []
    for genome in genomes:
        whole = search.space.complete(dict(genome))
        own = []
        for repeat in range(repeats):
            seed = derived_seed(search.seed, int(search.space.digest(whole)[:12], 16), 100 + repeat)
            model, _ = search.prepared(whole, seed)
            search.tune(model, whole, training, seed)
            own.append(search.score(model, whole))
        scores.append(own)
    return scores
