"""What each part of the method gives, on BCCD at the size of the preset ``small``: one seed detector, many candidates.

    python benchmarks/backbone_search_ablations.py [--part mapping|fidelity|genes|searches|seed] [--quick]

``mapping``: how candidates inherit (FNA's rule; ours by order, by importance; from scratch) times batch statistics
(re-estimated or not) times the length of tuning. ``fidelity``: Kendall's tau of cheap scores with the score after a
long tuning, over random genomes. ``genes``: searches over widths only, depths only, expansions only, and all.
``searches``: two objectives kept apart against weighted sums, random draws, a screen, candidates that inherit from the
nearest of the front, and candidates from scratch. ``seed``: a small seed that grows against a large one that is
cropped.

Everything is scored on the search split; the test split is not read. One seed: what these numbers show is the size of
effects, and no more.
"""

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tenfold.systems.backbone_search.detector.yolox_lite import YOLOXLite
from tenfold.systems.backbone_search.evolution.archive import front_of, hypervolumes
from tenfold.systems.backbone_search.evolution.candidates import EvolutionOptions
from tenfold.systems.backbone_search.evolution.worker import work
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.experiment.settings import PRESETS
from tenfold.systems.backbone_search.mapping.map_weights import map_weights
from tenfold.systems.backbone_search.method import CandidateOptions, DetectorSearch
from tenfold.systems.backbone_search.training.options import DetectorTraining
from tenfold.systems.backbone_search.training.train_detector import train_detector

RESULTS = Path(__file__).parent / "results" / "backbone-search-ablations.json"
SEED = 1000
"""No seed of a preset."""


class Bench:
    """Data, one trained seed detector, and searches on them."""

    def __init__(self, quick):
        self.config = copy.deepcopy(PRESETS["small"])
        if quick:
            self.config.data = replace(self.config.data, name="scenes", scenes=48, height=64, width=96)
            self.config.seed_training = DetectorTraining(epochs=2)
        self.quick, self.problem = quick, Problem(self.config)
        self.space, self.images = self.problem.space, self.problem.images
        self.seed_model, self.seed_score, self.seed_seconds = self.trained(self.problem.template)

    def trained(self, template):
        """A seed detector of a plan, its score, and the seconds of its training."""
        torch.manual_seed(SEED)
        model, started = YOLOXLite(template), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            train_detector(model, self.images["fit"], self.config.seed_training, folder=Path(folder), seed=SEED,
                           trainer=self.problem.trainer())  # fmt: skip
        search = self.search(seed_model=model)
        search.estimate(model, self.space.seed)
        return model.eval(), search.score(model, self.space.seed), time.process_time() - started

    def search(self, seed_model=None, space=None, tuning=None, **options):
        """A search with a seed detector."""
        return DetectorSearch(
            space or self.space, self.problem.template, seed_model or self.seed_model, self.images["fit"],
            self.images["search"], tuning or self.config.tuning, CandidateOptions(**options), seed=SEED,
            trainer=self.problem.trainer(),
        )  # fmt: skip

    def evolved(self, search, population=6, generations=3, **options):
        """A finished search: best score, hypervolume, front."""
        task = self.problem.task(search)
        chosen = EvolutionOptions(
            population=population, generations=1 if self.quick else generations, seed=SEED, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            if search.options.inherit == "parent":
                search.weights = Path(folder) / "weights"
                search.weights.mkdir()
            found = work(task, chosen, url=f"sqlite:///{folder}/study.db", weights=search.weights)
        limit = task.limits["multiply_adds"]
        return {
            "candidates": len(found),
            "best": round(max(c.score for c in found if c.violation == 0), 4),
            "hypervolume": round(hypervolumes(found, task.objectives, [limit * 1.000001])[-1], 4),
            "front": len(front_of(found, task.objectives)),
        }


CHANGES = {
    "half the expansions": {"expansion": 0.5},
    "3/4 of the widths": {"width": 0.75},
    "both, and shallower": {"width": 0.75, "expansion": 0.5, "shallower": 1},
}
RULES = {
    "FNA": {"mapping": "fna"},
    "ours, in order": {"importance": "order"},
    "ours, by importance": {},
    "from scratch": {"mapping": "none"},
}
EPOCHS = (0, 1, 2)


def mapping(bench):
    """Score of changed networks by rule, batch statistics and length of tuning."""
    rows = []
    genomes = {name: bench.space.scaled(**change) for name, change in CHANGES.items()}
    genomes["one block deeper"] = {**bench.space.seed, "s2.depth": 3, "s3.depth": 3}
    for name, genome in genomes.items():
        for rule, options in RULES.items():
            row = {"change": name, "rule": rule}
            for epochs in EPOCHS:
                search = bench.search(statistics=False, **options)
                model, _ = search.prepared(genome, SEED)
                if epochs:
                    tuning = replace(bench.config.tuning, epochs=epochs)
                    search.tune(model, genome, tuning, SEED)
                plain = search.score(model, genome)
                search.estimate(model, genome)
                row[f"{epochs} epochs"] = round(plain, 4)
                row[f"{epochs} epochs, statistics"] = round(search.score(model, genome), 4)
            rows.append(row)
            print(row, flush=True)
    return {"seed": round(bench.seed_score, 4), "seed_seconds": round(bench.seed_seconds, 1), "rows": rows}


def fidelity(bench, genomes=10, long=8):
    """Kendall's tau of cheap scores with the score after a long tuning."""
    from scipy.stats import kendalltau

    generator, scores = np.random.default_rng(SEED), {"mapped": [], "1 epoch": [], "3 epochs": [], f"{long} epochs": []}
    task = bench.problem.task(bench.search())
    chosen = []
    while len(chosen) < (3 if bench.quick else genomes):
        genome = bench.space.random(generator)
        if task.violation(genome) == 0:
            chosen.append(genome)
    for genome in chosen:
        for name, own in scores.items():
            search = bench.search()
            model, _ = search.prepared(genome, SEED, judged=True)
            if name != "mapped":
                search.tune(model, genome, replace(bench.config.tuning, epochs=int(name.split()[0])), SEED)
            own.append(search.score(model, genome))
        print({name: round(own[-1], 3) for name, own in scores.items()}, flush=True)
    last = scores[f"{long} epochs"]
    costs = [bench.search().costs(genome)["multiply_adds"] for genome in chosen]
    taus = {name: kendalltau(own, last).statistic for name, own in scores.items() if own is not last}
    taus["multiply-adds alone"] = kendalltau(costs, last).statistic
    return {"genomes": len(chosen), "tau": {n: round(float(t), 3) for n, t in taus.items()}, "scores": scores}


def genes(bench):
    """Searches with fewer genes, the others as in the seed."""
    found = {}
    for name, parts in {"width": ("width",), "depth": ("depth",), "expansion": ("expand",),
                        "all": ("width", "depth", "expand")}.items():  # fmt: skip
        space = copy.copy(bench.space)
        space.genes = {
            gene: choices if gene.rpartition(".")[2] in parts else (bench.space.seed[gene],)
            for gene, choices in bench.space.genes.items()
        }
        try:
            found[name] = bench.evolved(bench.search(space=space), population=4)
        except Exception as error:  # depth alone may not reach the budget
            found[name] = {"none": str(error)}
        print(name, found[name], flush=True)
    return found


def searches(bench):
    """Two objectives kept apart, and the other ways to search, with as many candidates each."""
    with tempfile.TemporaryDirectory() as folder:
        search = bench.search()
        search.cache = Path(folder)
        found = {"two objectives": bench.evolved(search)}
        for weight in (0.1, 0.3, 1.0):
            found[f"weight {weight}"] = bench.evolved(search, strategy="scalar", weight=weight)
        found["random"] = bench.evolved(search, strategy="random")
        found["screened"] = bench.evolved(search, screen=True)
    found["from the nearest of the front"] = bench.evolved(bench.search(inherit="parent"))
    found["from scratch"] = bench.evolved(bench.search(mapping="none"))
    for name, own in found.items():
        print(name, own, flush=True)
    return found


def seed(bench):
    """One network reached from the large seed by cropping and from a small one by growing, tuned alike."""
    aim = bench.space.scaled(width=0.75)
    small = replace(bench.problem.template, backbone=bench.space.plan(bench.space.scaled(width=0.5, expansion=0.5)))
    little, score, seconds = bench.trained(small)
    rows = {"large seed": {"seed": bench.seed_score, "seconds": bench.seed_seconds},
            "small seed": {"seed": score, "seconds": seconds}}  # fmt: skip
    for (name, row), source in zip(rows.items(), (bench.seed_model, little), strict=True):
        for epochs in (1, 4):
            search = bench.search(seed_model=source)
            model = YOLOXLite(search.plan(aim))
            map_weights(source, model, seed=SEED)
            search.tune(model, aim, replace(bench.config.tuning, epochs=epochs), SEED)
            row[f"{epochs} epochs"] = search.score(model, aim)
        print(name, row, flush=True)
    return {name: {key: round(value, 4) for key, value in row.items()} for name, row in rows.items()}


PARTS = {"mapping": mapping, "fidelity": fidelity, "genes": genes, "searches": searches, "seed": seed}


def main():
    """Measure the parts that are asked for, and write them beside those that are there."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--part", choices=list(PARTS), action="append")
    arguments.add_argument("--quick", action="store_true", help="drawn scenes and two epochs: does it run?")
    arguments.add_argument("--out", default=str(RESULTS))
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    bench, out = Bench(arguments.quick), Path(arguments.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    results |= {"data": bench.problem.splits.fit.name, "seed": SEED, "torch": torch.__version__}
    for part in arguments.part or list(PARTS):
        started = time.process_time()
        results[part] = PARTS[part](bench)
        results.setdefault("cpu_seconds", {})[part] = round(time.process_time() - started, 1)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
