"""What the tests of all systems need to know of each: a run of seconds, something to predict, where to kill it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


def an_image(folder):
    """A picture of a digit's size."""
    path = folder / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return [path]


def a_query(folder):
    """Nothing to make: graph fusion answers queries of names."""
    return ["virus, affects", "?, affects, virus"]


def a_topic(folder):
    """A question and a document, as a row."""
    path = folder / "topics.jsonl"
    text = "Rain fell all of that long day. The old bridge was rebuilt after a storm. Nobody came to see it."
    path.write_text(json.dumps({"query": "What happened to the bridge?", "document": text}) + "\n")
    return [path]


def a_question(folder):
    """A picture and a table that asks about it."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "a.png")
    path = folder / "asked.csv"
    path.write_text("image,question\na.png,what color is at nw\n")
    return [path]


@dataclass(frozen=True)
class Case:
    """How the tests of all systems treat one.

    Attributes:
        fast: settings of a run of seconds.
        kill_at: a file of the run folder; when it is there, the run is in the middle of its work.
        inputs: makes what ``predict`` takes, in a folder.
        wrong: settings that must be refused, each with a word that the line must hold.
        loads: what the library of its network loads by itself, though nobody trains.
    """

    fast: list[str]
    kill_at: str
    inputs: Callable[[Path], list]
    wrong: dict[str, str]
    loads: frozenset[str] = frozenset()


def a_scene(folder):
    """A picture of a size that no detector was trained at."""
    path = folder / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)).save(path)
    return [path]


def a_rig(folder):
    """A frame of a rig of two cameras and a LiDAR, as a file of frames beside its sensors' files."""
    draw = np.random.default_rng(0)
    np.save(folder / "points.npy", draw.uniform(-15, 15, (200, 4)).astype(np.float32))
    cameras = []
    for name in ("left", "right"):
        Image.fromarray(draw.integers(0, 255, (40, 120, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        pose = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
        matrix = [[100, 0, 60], [0, 100, 20], [0, 0, 1]]
        cameras.append({"name": name, "image": f"{name}.png", "intrinsics": matrix, "lidar2cam": pose})
    path = folder / "frames.json"
    frame = {"token": "0", "points": "points.npy", "cameras": cameras}
    path.write_text(json.dumps({"format": "tenfold-frames-1", "frames": [frame]}))
    return [path]


CASES = {
    "backbone-search": Case(
        fast=["--data.scenes", "9", "--data.height", "32", "--data.width", "64", "--seed_training.epochs", "2",
              "--final.epochs", "1", "--promotion.epochs", "1", "--search.population", "2", "--search.controls",
              "[random]", "--arms", "[mobiledet]", "--search.promote", "1", "--trainer.checkpoint_steps", "1"],
        kill_at="steps/search/nsga2/0/search.db",
        inputs=a_scene,
        wrong={"--search.budget=0": "budget", "--search.population=1": "population",
               "--search.controls=[best]": "controls",
               "--search.limits={parameters: 10}": "smallest network", "--tuning.learning_rate=-1": "learning_rate",
               "--search.latency=table": "latency_ms", "--space.sizes=[[32, 32]]": "sizes",
               "--data.height=100": "multiples of 32", "--space.neck=[16]": "neck", "--data.name=coco": "data.root"},
    ),
    "boosted-exits": Case(
        fast=["--seeds", "1", "--optimizer.epochs", "3", "--arms", "[joint]", "--model.arguments",
              "{widths: [4, 4, 6]}", "--trainer.checkpoint_steps", "2"],
        kill_at="steps/joint/seed0/last.ckpt",
        inputs=an_image,
        wrong={"--optimizer.learning_rate=-1": "learning_rate", "--model.arguments={widths: []}": "widths",
               "--budget=2": "budget", "--optimizer.epochs=0": "epochs"},
    ),
    "full-skip-depth": Case(
        fast=["--seeds", "1", "--data.images", "20", "--data.image_size", "[40, 56]", "--optimizer.epochs", "2",
              "--model.encoder", "tiny-4-6-8-8", "--model.width", "32", "--trainer.checkpoint_steps", "1"],
        kill_at="steps/rooms/unet/seed0/last.ckpt",
        inputs=an_image,
        wrong={"--optimizer.variance_focus=2": "variance_focus", "--model.max_depth=-1": "max_depth",
               "--data.crop=[8, 8]": "crop", "--arms=[unets]": "unets", "--data.name=moon": "moon",
               "--model.encoder=timm/vit_tiny_patch16_224": "no pyramid"},
    ),
    "dual-encoder": Case(
        fast=["--seeds", "1", "--data.scenes", "120", "--data.validation", "20", "--data.test", "40", "--model.width",
              "8", "--model.heads", "2", "--model.layers", "1", "--teacher.steps", "6", "--optimizer.steps", "6",
              "--trainer.checkpoint_steps", "1"],
        kill_at="steps/grid-qa/soft/seed0/last.ckpt",
        inputs=a_question,
        wrong={"--model.heads=5": "heads", "--data.side=4": "side", "--arms=[soft]": "dide", "--distil.soft=-1": "soft",
               "--optimizer.steps=0": "steps", "--model.vocabulary=missing.txt": "missing.txt",
               "--teacher.weights=missing.ckpt": "missing.ckpt", "--model.student_layers=1": "depth",
               "--data.name=folder": "data.root", "--distil.heads=3": "divide"},
    ),
    "activation-uncertainty": Case(
        fast=["--seeds", "1", "--optimizer.epochs", "2", "--estimator.passes", "20", "--estimator.test_passes", "20",
              "--model.arguments", "{widths: [16, 8]}"],
        kill_at="steps/main/digits/seed0/result.json",
        inputs=an_image,
        wrong={"--estimator.passes=0": "passes", "--optimizer.learning_rate=nan": "learning_rate",
               "--dropout.rate=1.5": "dropout.rate must be less than 1", "--data.rows=10": "no effect on 'digits'",
               "--companions=[digits]": "companions"},
    ),
    "relation-distillation": Case(
        fast=["--seeds", "1", "--teacher.width", "32", "--teacher.depth", "3", "--teacher.epochs", "1",
              "--distil.epochs", "2", "--finetune.epochs", "1", "--finetune.few_epochs", "2", "--student.width", "16",
              "--student.depth", "2", "--data.validation", "900", "--arms", "[scratch]",
              "--trainer.checkpoint_steps", "2"],
        kill_at="steps/relations/seed0/pretraining/last.ckpt",
        inputs=an_image,
        wrong={"--finetune.batch_size=0": "batch_size", "--teacher.decoder_heads=0": "decoder_heads",
               "--finetune.few_labels=-1": "few_labels", "--finetune.smoothing=2": "smoothing",
               "--teacher.decoder_width=30": "decoder_heads", "--distil.learning_rate=-1": "learning_rate",
               "--distil.pairs=[qx]": "pairs", "--finetune.randaugment=rand-m9": "randaugment",
               "--data.image_size=32": "image_size", "--student.arguments={depth: 3}": "arguments",
               "--student.width=18": "multiple", "--distil.teacher_layer=9": "layers 1 to 4",
               "--arms=[colour]": "colour", "--data.unlabelled=nowhere": "nowhere",
               "--teacher.weights=missing.pth": "missing.pth"},
        loads=frozenset({"torch._dynamo", "torch._inductor", "sympy"}),  # timm loads torchvision, which loads these
    ),
    "graph-fusion": Case(
        fast=["--seeds=1", "--arms=[m2l]", "--structure.arguments={dim: 16, channels: 4, normalize: false}",
              "--text.arguments={dim: 16}", "--fusion.warm_epochs=6", "--fusion.mutual_epochs=2", "--fusion.rounds=1",
              "--fusion.phase_epochs=2", "--fusion.threshold=0.1"],
        kill_at="steps/vem2l/seed0/round-1/m-step/last.ckpt",
        inputs=a_query,
        wrong={"--fusion.threshold=-1": "threshold", "--text.smoothing=2": "smoothing", "--arms=[nothing]": "nothing",
               "--fusion.temperature=0": "temperature", "--fusion.batch_size=1": "batch_size",
               "--fusion.lam=nan": "lam", "--structure.negatives=0": "negatives", "--data.fraction=0": "fraction",
               "--data.entities=-5": "entities", "--structure.factory=a:b": "go together"},
    ),
    "condensation-audit": Case(
        fast=["--seeds", "1", "--images_per_class", "[2]", "--methods", "[random, dm]", "--training.epochs", "20",
              "--training.networks", "2", "--training.full_epochs", "1", "--attack.images_per_class", "2",
              "--attack.trigger_steps", "10", "--attack.portion", "0.1", "--attack.updated_portion", "0.1",
              "--settings", "{dm: {iterations: 40, real_batch: 16, strategy: ''}}", "--held_out", "60",
              "--network.arguments", "{width: 4, depth: 2}"],
        kill_at="steps/attacks/doorping/seed0/condensation.safetensors",
        inputs=an_image,
        wrong={"--held_out=-1": "held_out", "--attack.portion=2": "portion"},
    ),
    "query-summarizer": Case(
        fast=["--seeds", "1", "--arms", "[stage1, both, sparse]", "--data.stage1_groups", "10", "--data.train_groups",
              "6", "--data.held_back_groups", "3", "--data.test_groups", "6", "--stage1.epochs", "2",
              "--stage2.epochs", "2", "--model.encoder", "hashed-16", "--model.arguments", "{width: 8, layers: 1}",
              "--trainer.checkpoint_steps", "1"],
        kill_at="steps/stage1/seed0/last.ckpt",
        inputs=a_topic,
        wrong={"--selection.words=0": "words", "--sparse.fractions=[2]": "fractions", "--stage1.learning_rate=-1":
               "learning_rate", "--arms=[stage1]": "both", "--data.name=jsonl": "data.train"},
    ),
    "cross-modal-detector": Case(
        fast=["--seeds", "1", "--data.train_scenes", "4", "--data.test_scenes", "2", "--optimizer.epochs", "2",
              "--optimizer.pretask_epochs", "1", "--optimizer.batch_size", "4", "--model.start", "scratch",
              "--model.dim", "16", "--model.heads", "2", "--model.queries", "16", "--model.depths", "4",
              "--model.layers", "1", "--model.hidden", "32", "--model.pillar_grid", "[16, 16]", "--model.pillar_width",
              "8", "--trainer.checkpoint_steps", "1"],
        kill_at="steps/plain/seed0/last.ckpt",
        inputs=a_rig,
        wrong={"--data.area=[0, 0, 0, 1, 1]": "data.area", "--data.image_size=[20, 96]": "multiples of 8",
               "--masking.images=0.9": "at most 1 together", "--arms=[plane]": "plane", "--model.dim=30": "model.heads",
               "--model.pillar_grid=[3, 8]": "pillar_grid", "--augmentation.scale=[2, 1]": "augmentation.scale",
               "--data.name=nuscenes": "data.root", "--model.start=missing": "missing",
               "--optimizer.learning_rate=-1": "learning_rate"},
    ),
}  # fmt: skip
"""By system; every system of the catalog has one."""

_TIMES = re.compile(r"second|time|\bms\b|/s\b|minutes|memory", re.IGNORECASE)


def numbers(folder):
    """What a run found, without what the clock says: two runs of one configuration must agree in it to the bit."""
    results = json.loads((Path(folder) / "results.json").read_text())
    results["claims"] = [claim for claim in results["claims"] if not _TIMES.search(claim["unit"])]
    for values in results["metrics"].values():
        for name in [name for name in values if _TIMES.search(name)]:
            del values[name]
    for table in results["tables"]:
        for place, column in enumerate(table["columns"]):
            if _TIMES.search(column):
                for row in table["rows"]:
                    row[place] = None
    results["plots"] = [plot for plot in results["plots"] if not _TIMES.search(plot["y_label"] + plot["x_label"])]
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables", "pictures")}
