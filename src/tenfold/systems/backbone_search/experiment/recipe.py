"""Backbone search: the experiment, read from top to bottom.

Seed detectors, searches and controls with as many candidates, promotion, the found network against the obvious ones
at equal cost, delivery. Every function can be called on its own.
"""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tenfold
from tenfold.cost import count_parameters
from tenfold.files import read_json, write_atomically
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.seeds import derived_seed
from tenfold.systems.backbone_search.data.average_precision import average_precision, detect_all
from tenfold.systems.backbone_search.data.resampling import match, resampled_difference
from tenfold.systems.backbone_search.detector.postprocess import SCORE_RULE
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite
from tenfold.systems.backbone_search.evolution.archive import (
    archive_lines,
    front_of,
    front_table,
    hypervolumes,
    pick,
    read_archive,
)
from tenfold.systems.backbone_search.evolution.candidates import Candidate
from tenfold.systems.backbone_search.evolution.worker import work
from tenfold.systems.backbone_search.experiment.comparison import (
    claims_of,
    metrics_of,
    plots_of,
    summary_of,
    tables_of,
)
from tenfold.systems.backbone_search.experiment.measure import differences, measure, reestimate
from tenfold.systems.backbone_search.experiment.pictures import networks_of, pictures_of
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.experiment.settings import PRESETS, Config
from tenfold.systems.backbone_search.experiment.shapes import at_cost
from tenfold.systems.backbone_search.mapping.map_weights import map_weights
from tenfold.systems.backbone_search.method import promote
from tenfold.systems.backbone_search.objectives.costs import count_costs
from tenfold.systems.backbone_search.training.train_detector import train_detector
from tenfold.workers import Step, do_steps

__all__ = ["PRESETS", "Config", "run"]


def run(config: Config, run: Run) -> Results:
    """Train the seeds, search, compare what was found, deliver it.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    problem = Problem(config)
    if config.search.latency == "table":
        table = run.step("latency-table", lambda _: problem.make_table(run.folder))
        run.say(f"look-up table of latency: rank correlation {table['rank_correlation']:.2f} with whole networks")
    problem.task(problem.search(config.seed, run.folder, with_seed=False)).check()  # a hopeless budget fails now
    problem.fresh_seed(config.seed)  # and wrong weights
    for note in problem.splits.notes:
        run.say(note)
    phases = phases_of(config)
    done = do_steps(run, phases, partial(open_place, config), workers=config.workers, work=Place(problem))
    outcomes = outcomes_of(config, done)
    if config.seeds == 1:
        outcomes["differences"] = differences(run.folder, config.seed, config.arms)
    first = outcomes["promotion"][config.seed]
    delivered = run.step("delivery", lambda _: deliver(problem, first, config.seed, run))
    costs = outcomes["finals"]["found"][0]
    return Results(
        system="backbone-search",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes),
        claims=claims_of(outcomes, delivered),
        metrics=metrics_of(outcomes),
        cost=Cost(
            params=int(costs["parameters"]),
            flops=float(costs["multiply_adds"]),
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type, data=problem.splits.fit.name, train_images=len(problem.splits.fit)
        ),
        plots=plots_of(outcomes, config),
        tables=tables_of(outcomes, config),
        pictures=[*networks_of(outcomes), *pictures_of(problem, run.folder, first)],
        notes=notes_of(problem),
    )


def phases_of(config: Config) -> list[list[Step]]:
    """The run's steps; those of a phase depend on earlier phases only."""
    seeds = range(config.seed, config.seed + config.seeds)
    strategies = ["nsga2", *config.search.controls]
    arms = ["found", *config.arms]
    return [
        [Step(f"seed/{seed}", ("seed", seed)) for seed in seeds],
        [Step(f"search/{name}/{seed}", ("search", seed, name)) for seed in seeds for name in strategies],
        [Step(f"{kind}/{seed}", (kind, seed)) for seed in seeds for kind in ("promotion", "unmapped")],
        [Step(f"final/{arm}/{seed}", ("final", seed, arm)) for seed in seeds for arm in arms],
    ]


def outcomes_of(config: Config, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the steps found: ``seeds``, ``promotion`` and ``unmapped`` by seed, ``searches`` and ``finals`` by name."""
    seeds = list(range(config.seed, config.seed + config.seeds))
    return {
        "seeds": {seed: done[f"seed/{seed}"] for seed in seeds},
        "promotion": {seed: done[f"promotion/{seed}"] for seed in seeds},
        "unmapped": {seed: done[f"unmapped/{seed}"] for seed in seeds},
        "searches": {
            name: [done[f"search/{name}/{seed}"] for seed in seeds] for name in ["nsga2", *config.search.controls]
        },
        "finals": {arm: [done[f"final/{arm}/{seed}"] for seed in seeds] for arm in ["found", *config.arms]},
    }


def open_place(config: Config) -> "Place":
    """What a worker process needs for every step."""
    return Place(Problem(config))


class Place:
    """Does the steps of a run with one copy of its data."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """One step; its arguments name the kind, the seed, and what else there is to choose."""
        kind, seed, *rest = step.arguments
        if kind == "seed":
            return train_seed(self.problem, seed, folder, run, step.name)
        if kind == "search":
            return search_once(self.problem, rest[0], seed, folder, run, step.name)
        if kind == "promotion":
            return promote_front(self.problem, seed, run)
        if kind == "unmapped":
            return without_mapping(self.problem, seed, run)
        chosen = read_json(run.folder / f"steps/promotion/{seed}/result.json")
        return train_final(self.problem, rest[0], chosen, seed, folder, run, step.name)


def notes_of(problem: Problem) -> list[str]:
    """What a reader must know to judge the numbers."""
    config, splits = problem.config, problem.splits
    notes = [
        *splits.notes,
        f"{len(splits.fit)} images are learnt, {len(splits.search)} score candidates, {len(splits.test)} are read "
        "once, after the last training; nothing is chosen on them.",
        "Costs are multiply-adds of convolutions of one image, neck and head included, at the input size of "
        f"{config.data.width} x {config.data.height}; twice that is torch's count.",
        "The paper's own settings of evolution and tuning are not public: population, generations, tuning length, "
        "kernels and operators as genes, and promotion are reconstructions.",
    ]
    if config.data.most_detections != 100:
        notes.append(
            f"Average precision counts up to {config.data.most_detections} detections an image, not COCO's 100, since "
            "images here hold more boxes."
        )
    return notes


def train_seed(problem: Problem, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
    """Train the seed detector of a search; its weights go into the step's folder."""
    training = problem.config.seed_training
    model = problem.fresh_seed(seed)
    images = problem.images["fit"]
    fitted = train_detector(
        model, images, training, folder=folder, seed=derived_seed(seed, 1),
        trainer=problem.config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, training.epochs, f"loss {row['train/loss']:.3f}"),
    )  # fmt: skip
    reestimate(model, images)
    _save(model, folder / "weights.safetensors")
    return {
        "plan": problem.template.to_dict(),
        "search_map": measure(problem, model, problem.images["search"])["map"],
        "seconds": fitted.seconds,
        "steps": fitted.steps,
        "history": fitted.history,
    }


def search_once(problem: Problem, strategy: str, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
    """One search; the study is the step's own database, so that a killed one goes on."""
    config = problem.config
    search = problem.search(seed, run.folder, strategy)
    if strategy == "parent":  # what a candidate is worth depends on those before it: nothing is shared, one works
        search.weights = folder / "weights"
        search.weights.mkdir(exist_ok=True)
    else:
        search.cache = run.folder / "evaluations" / f"{'scratch' if strategy == 'nomap' else 'mapped'}-{seed}"
        search.cache.mkdir(parents=True, exist_ok=True)
    own = config.search.storage if strategy == "nsga2" else None
    url = own or f"sqlite:///{(folder / 'search.db').absolute()}"
    task = problem.task(search)
    candidates = work(
        task,
        problem.evolution(strategy, seed),
        url=url,
        name=f"{strategy}-{seed}",
        alone=own is None,
        on_candidate=lambda done, total: run.progress(step, done, total),
        weights=search.weights,
    )
    write_atomically(folder / "archive.jsonl", archive_lines(candidates))
    if strategy == "nsga2" and seed == config.seed:
        write_atomically(run.folder / "archive.jsonl", archive_lines(candidates))
        write_atomically(run.folder / "front.csv", front_table(candidates, task.objectives))
    name = config.search.objective
    reference = [1.5 * task.limits[name]] if config.search.budget > 1 else [task.limits[name] * 1.000001]
    return {
        "candidates": [
            {
                "slot": c.slot,
                "generation": c.generation,
                "score": c.score,
                "cost": c.costs[name],
                "violation": c.violation,
                "untuned": c.details.get("untuned"),
                "genome": dict(c.genome),
            }
            for c in candidates
        ],
        "front": [c.slot for c in front_of(candidates, task.objectives)],
        "hypervolume": hypervolumes(candidates, task.objectives, reference),
        "seconds": sum(c.details["seconds"] for c in candidates),
        "seed_cost": search.costs(problem.space.seed)[name],
        "limit": task.limits[name],
    }


def archive_of(run_folder: Path, strategy: str, seed: int) -> list[Candidate]:
    """The candidates of a finished search."""
    path = run_folder / f"steps/search/{strategy}/{seed}/archive.jsonl"
    return read_archive(path.read_text(encoding="utf-8"), str(path))


def promote_front(problem: Problem, seed: int, run: Run) -> dict[str, Any]:
    """Tune the front's best candidates longer and choose among them, by the search split."""
    config = problem.config.search
    names = (config.objective,)
    candidates = archive_of(run.folder, "nsga2", seed)
    front = sorted(front_of(candidates, names), key=lambda c: -c.score)[: config.promote]
    if config.pick == "knee":
        front = [pick(candidates, names, "knee")]
    search = problem.search(seed, run.folder)
    scores = promote(search, [c.genome for c in front], problem.config.promotion, config.repeats)
    means = [sum(own) / len(own) for own in scores]
    best = max(range(len(front)), key=lambda row: means[row])
    if seed == problem.config.seed:
        folder = run.folder / "best"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / "genome.json", json.dumps(dict(front[best].genome), indent=1) + "\n")
    return {
        "genome": dict(front[best].genome),
        "slot": front[best].slot,
        "promoted": [{"slot": c.slot, "short": c.score, "long": own} for c, own in zip(front, scores, strict=True)],
    }


def without_mapping(problem: Problem, seed: int, run: Run) -> dict[str, Any]:
    """The best genome with the same short tuning, mapped and from scratch: what inheriting is worth."""
    names, most = (problem.config.search.objective,), problem.config.data.most_detections
    genome = problem.space.complete(dict(pick(archive_of(run.folder, "nsga2", seed), names).genome))
    digest = problem.space.digest(genome)
    images, scores, matches = problem.images["search"], [], []
    for strategy in ("nsga2", "nomap"):
        model = problem.search(seed, run.folder, strategy).tuned(genome, digest)[0]
        found = detect_all(model, images, most=most, size=problem.size_of(genome))
        scores.append(average_precision(found, images.data, most)["map"])
        matches.append(match(found, images.data, most))
    found_difference = resampled_difference(matches[0], matches[1])
    again: list[float] = []
    if seed == problem.config.seed:  # what other draws of order and fresh weights make of the same genome
        again = promote(problem.search(seed, run.folder), [genome], problem.config.tuning, 2)[0]
    return {
        "mapped": scores[0],
        "scratch": scores[1],
        "low": found_difference.low,
        "high": found_difference.high,
        "again": again,
    }


def arm_plan(problem: Problem, arm: str, chosen: dict[str, Any]) -> DetectorPlan:
    """The network of an arm, at the found network's multiply-adds."""
    genome = problem.space.complete(chosen["genome"])
    found = replace(problem.template, backbone=problem.space.plan(genome))
    if arm in ("found", "scratch"):
        return found
    size = problem.size_of(genome)
    return at_cost(arm, problem.template, count_costs(found, *size)["multiply_adds"], *size)


def train_final(
    problem: Problem, arm: str, chosen: dict[str, Any], seed: int, folder: Path, run: Run, step: str
) -> dict[str, Any]:
    """Map once more from the seed, train to the end, measure on the search split and, once, on the test split."""
    config = problem.config
    plan, size = arm_plan(problem, arm, chosen), problem.size_of(problem.space.complete(chosen["genome"]))
    images = problem.images_at("fit", size)
    torch.manual_seed(derived_seed(seed, 2))
    model = YOLOXLite(plan)
    if arm != "scratch":
        source = YOLOXLite(problem.template)
        source.load_state_dict(load_file(run.folder / f"steps/seed/{seed}/weights.safetensors"))
        rule: Any = config.search.mapping
        map_weights(source, model, rule, importance=config.search.importance, growth=config.search.growth, seed=seed)
    fitted = train_detector(
        model, images, config.final, folder=folder, seed=derived_seed(seed, 3), trainer=config.trainer,
        on_epoch=lambda epoch, row: run.progress(step, epoch, config.final.epochs, f"loss {row['train/loss']:.3f}"),
    )  # fmt: skip
    reestimate(model, images)
    _save(model, folder / "weights.safetensors")
    on_search = measure(problem, model, problem.images_at("search", size))
    on_test = measure(problem, model, problem.images_at("test", size), folder if config.seeds == 1 else None)
    counted = {"multiply_adds": model.layout(*size).multiply_adds}
    return {
        "plan": plan.to_dict(),
        **counted,
        "parameters": count_parameters(model),
        "search_map": on_search["map"],
        "test_map": on_test["map"],
        "test_map50": on_test["map50"],
        "test_classes": on_test["classes"],
        "seconds": fitted.seconds,
        "history": fitted.history,
    }


def deliver(problem: Problem, chosen: dict[str, Any], seed: int, run: Run) -> dict[str, Any]:
    """Write the found detector of the first search as the run's model, and try its export."""
    plan, size = arm_plan(problem, "found", chosen), problem.size_of(problem.space.complete(chosen["genome"]))
    model = YOLOXLite(plan)
    model.load_state_dict(load_file(run.folder / f"steps/final/found/{seed}/weights.safetensors"))
    model.eval()
    config, splits = problem.config, problem.splits
    save_model(
        run.folder,
        model,
        system="backbone-search",
        builder="yolox-lite",
        arguments={"plan": plan.to_dict()},
        extra={
            "classes": list(splits.classes),
            "category_ids": list(splits.fit.category_ids),
            "height": size[0],
            "width": size[1],
            "score": SCORE_RULE,
            "most_detections": config.data.most_detections,
        },
    )
    shutil.rmtree(run.folder / "evaluations", ignore_errors=True)
    return _tried_export(model, problem.images_at("search", size)[[0]].float(), run.folder)


def _tried_export(model: YOLOXLite, image: torch.Tensor, folder: Path) -> dict[str, Any]:
    from importlib.util import find_spec

    if find_spec("onnxscript") is None or find_spec("onnxruntime") is None:
        return {"difference": None, "latency": None}
    from tenfold.systems.backbone_search.objectives.latency import facts, measure_onnx
    from tenfold.systems.backbone_search.serving import export_detector, load_onnx

    (folder / "best").mkdir(exist_ok=True)
    path = folder / "best" / "model.onnx"
    extra = json.loads((folder / "model.json").read_text(encoding="utf-8"))["extra"]
    export_detector(model, path, extra)
    with torch.no_grad():
        ours, theirs = model.detect(image), load_onnx(path).outputs(image)
    off = (ours - theirs).abs()
    off[..., :4] /= ours[..., 2:4].repeat(1, 1, 2).clamp(min=1)  # boxes by their own sides: untrained ones can be vast
    return {"difference": off.max().item(), "latency": facts(measure_onnx(path, runs=50, seconds=0.5))}


def _save(model: YOLOXLite, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
