"""A training step against a plain form of the same detector, and exported networks against each other.

    python benchmarks/backbone_search_speed.py [--part step|latency|table] [--found GENOME.json] [--out FILE]

``step``: one step of the seed detector on 16 images of BCCD's size, whole: batch, forward, assignment, loss, backward,
clipping, optimizer, moving average; beside it the plain form: images read into the batch one by one, the published loop
of assignment, an average tensor by tensor. Same weights, same images; both lose the same. ``latency``: onnxruntime on
one thread, suppression included, floating point and INT8, of the found network, a MobileDet-CPU shape, a PicoDet-S
shape and YOLOX-Nano at one size. ``table``: what a look-up table of blocks makes of 20 random networks.
"""

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

from backbone_search_assignment import one_by_one
from tenfold.errors import UserError
from tenfold.models.onnx import onnx_session
from tenfold.systems.backbone_search.data.augment import FLIPS
from tenfold.systems.backbone_search.data.batches import DetectionBatches
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.scenes import make_scenes
from tenfold.systems.backbone_search.detector.head import decode, make_grid
from tenfold.systems.backbone_search.detector.mobile import BlockPlan, MobilePlan, mobiledet
from tenfold.systems.backbone_search.detector.postprocess import SCORE_RULE, postprocess
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite, yolox
from tenfold.systems.backbone_search.objectives.costs import count_costs
from tenfold.systems.backbone_search.objectives.int8 import quantize
from tenfold.systems.backbone_search.objectives.latency import latency_of
from tenfold.systems.backbone_search.objectives.lookup_table import LookUpTable, onnx_timer
from tenfold.systems.backbone_search.serving import export_detector, metadata_of
from tenfold.systems.backbone_search.space.mobile_space import SMALL_SEED, MobileSpace
from tenfold.systems.backbone_search.training.moving_average import DetectionObjective, decay_after
from tenfold.systems.backbone_search.training.train_detector import parameter_groups

RESULTS = Path(__file__).parent / "results"
CLASSES = 3
SPACE = MobileSpace(SMALL_SEED, per_stage=True)


def small(genome):
    """A detector of the preset ``small``."""
    return DetectorPlan(SPACE.plan(genome), CLASSES, (32, 32, 32), 32)


def picodet_shape():
    """PicoDet-S's shape in these blocks: PP-LCNet x0.75 (depthwise and 1 x 1), a neck and head of 96 channels.

    After the public configuration; its gates in the last stage and its 5 x 5 convolutions in the neck are left out.
    """
    stages = [(16, [(24, 3, 1), (48, 3, 2), (48, 3, 1)]), (48, [(96, 3, 2), (96, 3, 1)]),
              (96, [(192, 3, 2), *[(192, 5, 1)] * 5]), (192, [(384, 5, 2), (384, 5, 1)])]  # fmt: skip
    blocks = tuple(
        tuple(BlockPlan("ibn", width, stride, kernel, expansion=1) for width, kernel, stride in stage)
        for _, stage in stages
    )
    return DetectorPlan(MobilePlan(16, blocks, (1, 2, 3), "hswish"), CLASSES, (96, 96, 96), 96)


class PlainStep:
    """The straightforward form: images one by one, the published loop of assignment, tensors of the average in turn."""

    def __init__(self, model, images):
        self.model, self.images, self.boxes = model, images, images.boxes(120)
        self.average = copy.deepcopy(model).eval()
        self.optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), lr=0.0, momentum=0.9, nesterov=True)
        self.steps = 0

    def __call__(self, rows):
        """One step on these images; the loss."""
        pictures, truths = [], []
        corners, kinds, present = self.boxes
        for row in rows:
            pictures.append(self.images[[row]][0].float())
            own = corners[row][present[row]]
            centre = torch.cat([(own[:, :2] + own[:, 2:]) / 2, own[:, 2:] - own[:, :2]], 1)
            truths.append((centre, kinds[row][present[row]]))
        raw = self.model(torch.stack(pictures))
        places, strides = make_grid(self.images.height, self.images.width)
        boxes = decode(raw, places, strides)
        total, positives = 0.0, 0
        for image, (truth, classes) in enumerate(truths):
            there = torch.ones(1, len(truth), dtype=torch.bool)
            with torch.no_grad():
                owner = one_by_one(
                    boxes[[image]], raw[[image], :, 4], raw[[image], :, 5:], places, strides, truth[None],
                    classes[None], there,
                )[0]  # fmt: skip
            cell = (owner >= 0).nonzero()[:, 0]
            mine, wanted = boxes[image, cell], truth[owner[cell]]
            low = torch.maximum(mine[:, :2] - mine[:, 2:] / 2, wanted[:, :2] - wanted[:, 2:] / 2)
            high = torch.minimum(mine[:, :2] + mine[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2)
            shared = (high - low).prod(1) * (low < high).all(1)
            iou = shared / (mine[:, 2:].prod(1) + wanted[:, 2:].prod(1) - shared + 1e-16)
            aims = F.one_hot(classes[owner[cell]], CLASSES) * iou.detach()[:, None]
            total = total + 5 * (1 - iou**2).sum()
            total = total + F.binary_cross_entropy_with_logits(raw[image, :, 4], (owner >= 0).float(), reduction="sum")
            total = total + F.binary_cross_entropy_with_logits(raw[image, cell, 5:], aims, reduction="sum")
            positives += len(cell)
        loss = total / max(positives, 1)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 20.0)
        self.optimizer.step()
        self.steps += 1
        decay = decay_after(self.steps)
        with torch.no_grad():
            own = self.model.state_dict()
            for name, value in self.average.state_dict().items():
                if value.is_floating_point():
                    value.mul_(decay).add_(own[name], alpha=1 - decay)
        return float(loss)


class OurStep:
    """A step as ``train_detector`` makes it, less Lightning's own bookkeeping."""

    def __init__(self, model, images):
        self.model, self.objective = model, DetectionObjective(model, True)
        self.batches = DetectionBatches(images, 16, 0, replace(FLIPS, flip=0.0))  # the plain form does not flip either
        self.optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), lr=0.0, momentum=0.9, nesterov=True)

    def __call__(self, rows):
        """One step on these images; the loss."""
        batch = self.batches._make(rows, False)
        loss, _ = self.objective(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 20.0)
        self.optimizer.step()
        return float(loss)


def step(rounds=12):
    """Milliseconds of a step, both forms in turns."""
    images = LetterboxedImages(make_scenes(64, 0, 96, 128), 96, 128)
    torch.manual_seed(0)
    model = YOLOXLite(small(SPACE.seed)).train()
    forms = {"tenfold": OurStep(copy.deepcopy(model), images), "plain": PlainStep(copy.deepcopy(model), images)}
    times, losses = {name: [] for name in forms}, {}
    rows = torch.arange(16)
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.process_time()
            losses[name] = form(rows if name == "tenfold" else rows.tolist())
            times[name].append((time.process_time() - start) * 1000)
    found = {name: round(statistics.median(values[2:]), 1) for name, values in times.items()}
    return {**found, "times_faster": round(found["plain"] / found["tenfold"], 2), "losses": losses}


def networks(found, side):
    """Detectors of one task at one size."""
    shapes = {
        "found": small({**SPACE.seed, **found}),
        "seed": small(SPACE.seed),
        "MobileDet-CPU shape": DetectorPlan(mobiledet("cpu"), CLASSES),
        "PicoDet-S shape": picodet_shape(),
        "YOLOX-Nano": yolox("nano", CLASSES, stem="conv"),
    }
    return {name: (plan, count_costs(plan, side, side)["multiply_adds"]) for name, plan in shapes.items()}


def latency(found, side=320, rounds=60):
    """Milliseconds of one image, all networks and both precisions in turns, suppression included."""
    rows, calls, times = {}, {}, {}
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (16, 3, side, side), generator=generator).float()
    with TemporaryDirectory() as folder:
        for name, (plan, adds) in networks(found, side).items():
            torch.manual_seed(0)
            model = YOLOXLite(plan).eval()
            extra = {"classes": ["a", "b", "c"], "height": side, "width": side, "score": SCORE_RULE}
            files = {kind: Path(folder) / f"{len(rows)}-{kind}.onnx" for kind in ("float", "int8")}
            export_detector(model, files["float"], extra)
            rows[name] = {"multiply_adds": adds, "parameters": sum(p.numel() for p in model.parameters())}
            try:
                quantize(files["float"], files["int8"], pictures, metadata_of(extra))
            except UserError as error:
                rows[name]["int8_refused"] = str(error)
                del files["int8"]
            for kind, path in files.items():
                calls[name, kind], times[name, kind] = onnx_session(path), []
        feed = {"images": pictures[:1].numpy()}
        for turn in range(rounds + 5):
            for key, session in calls.items():
                start = time.process_time()
                postprocess(torch.from_numpy(session.run(None, feed)[0]))
                if turn >= 5:
                    times[key].append((time.process_time() - start) * 1000)
    for (name, kind), values in times.items():
        rows[name][f"{kind}_ms"] = round(statistics.median(values), 2)
    return {"side": side, "networks": rows}


def table():
    """Rank correlation of sums over blocks with whole networks, and how long each takes."""
    generator, height, width = np.random.default_rng(0), 96, 128
    plans = [small(SPACE.random(generator)) for _ in range(20)]
    started = time.perf_counter()
    whole = [latency_of(YOLOXLite(plan).eval(), height, width).median_ms for plan in plans]
    measured = time.perf_counter()
    own = LookUpTable(small(SPACE.seed), height, width, onnx_timer())
    own.measure(plans)
    summed = time.perf_counter()
    try:
        correlation, refused = own.check(plans, whole), None
    except UserError as error:
        correlation, refused = None, str(error)
    from scipy.stats import spearmanr

    adds = [count_costs(plan, height, width)["multiply_adds"] for plan in plans]
    return {
        "networks": len(plans),
        "entries": len(own.entries),
        "rank_correlation": correlation,
        "refused": refused,
        "rank_correlation_of_multiply_adds": round(float(spearmanr(adds, whole).statistic), 3),
        "seconds_whole": round(measured - started, 1),
        "seconds_table": round(summed - measured, 1),
        "whole_ms": [round(value, 3) for value in whole],
        "sums_ms": [round(own.milliseconds(plan), 3) for plan in plans],
    }


def main():
    """Measure the parts that are asked for, and write them beside those that are there."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--part", choices=["step", "latency", "table"], action="append")
    arguments.add_argument("--found", default=str(RESULTS / "backbone-search-found.json"), help="a genome")
    arguments.add_argument("--out", default=str(RESULTS / "backbone-search-speed.json"))
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    out, genome = Path(arguments.out), Path(arguments.found)
    results = json.loads(out.read_text()) if out.exists() else {}
    results |= {"threads": 1, "clock": "CPU time, medians, in turns", "torch": torch.__version__}
    for part in arguments.part or ["step", "latency", "table"]:
        found = json.loads(genome.read_text()) if genome.exists() else SPACE.scaled(width=0.75)
        results[part] = {"step": step, "latency": lambda found=found: latency(found), "table": table}[part]()
        print(part, json.dumps(results[part], indent=1), flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
