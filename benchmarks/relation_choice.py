"""Choose the settings of relation distillation's presets on validation images alone.

    python benchmarks/relation_choice.py [--preset small] [--out benchmarks/results/relation-choice-small.json]

Two choices, each from the candidates below. First, how to fine-tune: learning rate, its decay from layer to layer, and
length, by the validation accuracy of the student *from scratch*, so that the baseline has what is best for it; the
length is long enough where twice as long gives less than a point. Second, how to pre-train: the teacher and the
distillation, by the mean validation accuracy over the distilled arms. The seed is none of the preset's, and the test
images are taken away before anything runs: where a step measures the test, it measures the validation images.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from tenfold.run import Run, environment, write_atomically
from tenfold.systems.relation_distillation.comparison import metric_of
from tenfold.systems.relation_distillation.data import load_images
from tenfold.systems.relation_distillation.pretraining import make_teacher, pretrain_arm, train_teacher
from tenfold.systems.relation_distillation.recipe import evaluate_arm
from tenfold.systems.relation_distillation.settings import ARMS, PRESETS, Arm

SEED = 100
FINETUNING = [
    {"learning_rate": 3e-3, "layer_decay": 0.75},
    {"learning_rate": 3e-3, "layer_decay": 1.0},
    {"learning_rate": 6e-3, "layer_decay": 1.0},
    {"learning_rate": 6e-3, "layer_decay": 0.75},
    {"learning_rate": 6e-3, "layer_decay": 1.0, "epochs": 2.0},
]
"""Settings of fine-tuning; ``epochs`` as a multiple of the preset's."""
PRETRAINING = [
    {},
    {"teacher": {"heads": [4]}},
    {"distil": {"learning_rate": 4e-3}},
    {"distil": {"epochs": 2.0}},
]
"""Changes of the preset; ``epochs`` as a multiple of the preset's."""
DISTILLED = ("feature-qkv", "relations")


def changed(options, changes):
    """Options with changes; epochs are multiplied."""
    changes = {k: round(getattr(options, k) * v) if k == "epochs" else v for k, v in changes.items()}
    return replace(options, **changes)


class Trial:
    """One candidate: its pre-training and fine-tuning in a folder of its own."""

    def __init__(self, config, splits, folder):
        self.config, self.splits, self.folder = config, splits, folder
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        self.run = Run(folder, quiet=True)

    def teacher(self, place):
        """The teacher, trained once for equal settings."""
        if not (place / "weights.safetensors").exists():
            place.mkdir(parents=True)
            train_teacher(self.config, self.splits, place, self.run)
        return make_teacher(self.config, self.splits, place / "weights.safetensors")

    def accuracy(self, arm, teacher, labels=("full", "few")):
        """Validation accuracies after pre-training and fine-tuning, in percent."""
        place = self.folder / arm
        place.mkdir()
        chosen = ARMS.get(arm, Arm())
        found = pretrain_arm(self.config, self.splits, chosen, teacher, SEED, place, self.run, arm)
        measured = {"knn": round(found["knn"], 2)}
        for which in labels:
            (place / which).mkdir()
            result = evaluate_arm(
                self.config, self.splits, chosen, found, place / "weights.safetensors", SEED, which, place / which,
                run=self.run, step=which,
            )  # fmt: skip
            measured[which] = round(result[which]["validation"][metric_of(self.splits.name)], 2)
        return measured


def main():
    """Try the candidates and write what they reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parent / f"results/relation-choice-{arguments.preset}.json"
    preset = PRESETS[arguments.preset]
    preset = replace(preset, seed=SEED, trainer=replace(preset.trainer, loggers=[]))
    data = preset.data
    splits = load_images(
        data.name, root=data.root, validation=data.validation, image_size=data.image_size, limit=data.limit
    )
    splits = replace(splits, test=splits.validation)
    began = time.monotonic()
    found = {"preset": arguments.preset, "data": splits.name, "seed": SEED, "validation_images": len(splits.validation)}
    found |= {"finetuning": [], "pretraining": [], "environment": environment("cpu")}
    scratch = Path(tempfile.mkdtemp())
    try:
        for number, changes in enumerate(FINETUNING):
            config = replace(preset, finetune=changed(preset.finetune, changes))
            accuracy = Trial(config, splits, scratch / f"finetuning{number}").accuracy(
                "scratch", make_teacher(config, splits, None)
            )
            row = {name: getattr(config.finetune, name) for name in ("learning_rate", "layer_decay", "epochs")}
            found["finetuning"].append(row | accuracy)
            print(found["finetuning"][-1], flush=True)
        for number, changes in enumerate(PRETRAINING):
            config = replace(
                preset,
                teacher=changed(preset.teacher, changes.get("teacher", {})),
                distil=changed(preset.distil, changes.get("distil", {})),
            )
            trial = Trial(config, splits, scratch / f"pretraining{number}")
            heads = config.teacher.heads[0]
            teacher = trial.teacher(scratch / f"teacher-{heads}-{config.teacher.epochs}")
            row = {
                "teacher_heads": heads,
                "learning_rate": config.distil.learning_rate,
                "epochs": config.distil.epochs,
                "arms": {arm: trial.accuracy(arm, teacher) for arm in DISTILLED},
            }
            for which in ("full", "few"):
                row[which] = round(sum(row["arms"][arm][which] for arm in DISTILLED) / len(DISTILLED), 2)
            found["pretraining"].append(row)
            print(row, flush=True)
            found["minutes"] = round((time.monotonic() - began) / 60, 1)
            write_atomically(out, json.dumps(found, indent=1) + "\n")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    main()
