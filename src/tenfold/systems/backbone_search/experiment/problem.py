"""The run's problem: seed network, space, search; what workers on other machines build again from the run folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tenfold.errors import UserError
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.splits import DetectionSplits, load_detection
from tenfold.systems.backbone_search.detector.classifiers import load_classifier
from tenfold.systems.backbone_search.detector.darknet import DarknetPlan
from tenfold.systems.backbone_search.detector.official import load_official
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite, yolox
from tenfold.systems.backbone_search.evolution.candidates import EvolutionOptions, SearchTask
from tenfold.systems.backbone_search.experiment.settings import Config
from tenfold.systems.backbone_search.mapping.map_weights import map_weights
from tenfold.systems.backbone_search.method import CandidateOptions, DetectorSearch
from tenfold.systems.backbone_search.objectives.latency import latency_costs, latency_of
from tenfold.systems.backbone_search.objectives.lookup_table import WHOLE_NETWORKS, LookUpTable, onnx_timer
from tenfold.systems.backbone_search.space.darknet_space import DarknetSpace
from tenfold.systems.backbone_search.space.mobile_space import SMALL_SEED, MobileSeed, MobileSpace
from tenfold.training.options import TrainerOptions

TABLE = "latency-table.json"


class Problem:
    """Data, space and template of a run, built once per process.

    Attributes:
        config: the settings.
        splits: the data.
        images: letterboxed images of the splits ``fit`` and ``search``; those of ``test`` are made when they are read.
        space: genes.
        template: the seed detector's plan.
    """

    def __init__(self, config: Config, splits: DetectionSplits | None = None) -> None:
        self.config = config
        self.splits = splits or load_detection(config.data, config.seed)
        size = (config.data.height, config.data.width)
        self.images = {name: LetterboxedImages(getattr(self.splits, name), *size) for name in ("fit", "search")}
        self.space, self.template = space_of(config, len(self.splits.classes))

    def images_at(self, split: str, size: tuple[int, int]) -> LetterboxedImages:
        """The images of a split at an input size; those of ``test`` are read when the last networks are trained."""
        known = self.images.get(split)
        if known is not None and (known.height, known.width) == size:
            return known
        return LetterboxedImages(getattr(self.splits, split), *size)

    def size_of(self, genome: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width of a genome's input."""
        return self.space.input_size(genome) or (self.config.data.height, self.config.data.width)

    def fresh_seed(self, seed: int) -> YOLOXLite:
        """The seed detector before its training: fresh, or with trained weights as far as they fit."""
        torch.manual_seed(seed)
        model, path = YOLOXLite(self.template), self.config.space.weights
        if path is not None and self.config.space.seed == "mobile":
            map_weights(load_classifier(path, self.template), model, parts="backbone")
        elif path is not None:
            backbone = self.template.backbone
            assert isinstance(backbone, DarknetPlan)
            official = load_official(path, backbone.stem)
            if official.plan.backbone != backbone:
                raise UserError(f"{path} holds another network than space.seed {self.config.space.seed}")
            map_weights(official, model)
        return model

    def search(self, seed: int, folder: Path, strategy: str = "nsga2", *, with_seed: bool = True) -> DetectorSearch:
        """The search of one seed.

        Args:
            seed: of the search.
            folder: the run's; the seed detector's weights are in it.
            strategy: ``nomap`` begins candidates from scratch, ``parent`` from the nearest one of the front; ``nsga2``
                also scores them before tuning, to see what a cheaper score would have said.
            with_seed: load the seed detector.
        """
        config, model = self.config, None
        if with_seed:
            model = YOLOXLite(self.template)
            model.load_state_dict(load_file(folder / f"steps/seed/{seed}/weights.safetensors"))
            model.eval()
        rule: Any = "none" if strategy == "nomap" else config.search.mapping
        options = CandidateOptions(
            rule, config.search.importance, config.search.growth,
            inherit="parent" if strategy == "parent" else "seed", untuned=strategy == "nsga2",
        )  # fmt: skip
        return DetectorSearch(
            self.space, self.template, model, self.images["fit"], self.images["search"], config.tuning, options,
            seed=seed, trainer=self.trainer(), most_detections=config.data.most_detections,
            latency=self.latency(folder),
        )  # fmt: skip

    def latency(self, folder: Path) -> Callable[[DetectorPlan, int, int], dict[str, float]] | None:
        """How ``latency_ms`` is found; ``None`` where nothing asks for it."""
        options = self.config.search
        if options.objective != "latency_ms" and "latency_ms" not in options.limits:
            return None
        if options.latency != "table":
            return latency_costs(options.latency_command)
        table = self.table()
        table.load(folder / TABLE)
        return lambda plan, height, width: {"latency_ms": table.milliseconds(plan)}

    def table(self) -> LookUpTable:
        """A look-up table without entries."""
        return LookUpTable(self.template, self.config.data.height, self.config.data.width, onnx_timer())

    def make_table(self, folder: Path) -> dict[str, float]:
        """Measure a look-up table on random networks of the space, and hold its sums against their own times."""
        generator, plans = np.random.default_rng(self.config.seed), []
        for _ in range(WHOLE_NETWORKS):
            plans.append(replace(self.template, backbone=self.space.plan(self.space.random(generator))))
        size, table = (self.config.data.height, self.config.data.width), self.table()
        whole = [latency_of(YOLOXLite(plan).eval(), *size).median_ms for plan in plans]
        correlation = table.check(plans, whole)
        table.save(folder / TABLE)
        return {"rank_correlation": correlation, "entries": float(len(table.entries))}

    def trainer(self) -> TrainerOptions:
        """Where short trainings run: like the long ones, without loggers."""
        return replace(self.config.trainer, loggers=[], devices=1, num_nodes=1, strategy="auto")

    def limits(self, search: DetectorSearch) -> dict[str, float]:
        """The budget as an absolute cost, and the further limits."""
        name = self.config.search.objective
        costs = search.costs(self.space.seed)
        limits: dict[str, float] = {name: self.config.search.budget * costs[name]}
        return limits | {str(other): limit for other, limit in self.config.search.limits.items()}

    def task(self, search: DetectorSearch) -> SearchTask:
        """The search as evolution takes it."""
        return search.task((self.config.search.objective,), self.limits(search))

    def evolution(self, strategy: str, seed: int) -> EvolutionOptions:
        """How genomes are drawn for a strategy."""
        search = self.config.search
        chosen: Any = "nsga2" if strategy in ("nomap", "parent") else strategy
        mode = search.mode if strategy == "nsga2" else "sync"
        screen = search.screen and strategy == "nsga2"
        return EvolutionOptions(chosen, search.population, search.generations, seed, search.weight, mode, screen=screen)


def space_of(config: Config, num_classes: int) -> tuple[MobileSpace | DarknetSpace, DetectorPlan]:
    """The space of the settings and the plan of its seed detector."""
    options = config.space
    if options.seed.startswith("yolox-"):
        name: Any = options.seed.removeprefix("yolox-")
        plan = yolox(name, num_classes, stem="conv")
        assert isinstance(plan.backbone, DarknetPlan)
        return DarknetSpace(plan.backbone), plan
    network = SMALL_SEED if options.seed == "small" else MobileSeed()
    sizes = [(height, width) for height, width in options.sizes]
    space = MobileSpace(network, options.mode, options.per_stage, sizes)
    n3, n4, n5 = options.neck
    return space, DetectorPlan(space.plan(space.seed), num_classes, (n3, n4, n5), options.head)
