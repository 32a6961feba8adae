"""Choose learning rates of relation distillation's presets on validation images alone.

    python benchmarks/relation_choice.py [--preset small] [--out benchmarks/results/relation-choice-small.json]

Fine-tuning's by the student *from scratch* on all labels, so that the baseline has what is best for it; a candidate
that trains longer only shows how far from converged that is. Pre-training's by the mean over two distilled arms on few
labels. The seed is none of the preset's, and the test images are taken away before anything runs: where a step
measures the test, it measures the validation images. Beside the result, FILE.args has the choice as settings of
``tenfold run``.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tenfold.files import write_atomically
from tenfold.run import Run, environment
from tenfold.systems.relation_distillation.experiment.arms import ARMS, Arm
from tenfold.systems.relation_distillation.experiment.comparison import metric_of
from tenfold.systems.relation_distillation.experiment.finetuning import evaluate_arm
from tenfold.systems.relation_distillation.experiment.pretraining import make_teacher, pretrain_arm, train_teacher
from tenfold.systems.relation_distillation.experiment.recipe import read_images
from tenfold.systems.relation_distillation.experiment.settings import PRESETS

SEED = 100
FINETUNING = [{"learning_rate": 3e-3}, {"learning_rate": 6e-3}, {"learning_rate": 6e-3, "longer": 2}]
"""Changes of the preset's fine-tuning; ``longer`` multiplies its epochs."""
PRETRAINING = [{"learning_rate": 2e-3}, {"learning_rate": 4e-3}]
"""Changes of the preset's distillation."""
DISTILLED = ("feature-qkv", "relations")


class Trials:
    """Candidates on one set of images, each in a folder of its own."""

    def __init__(self, preset, folder):
        self.config = replace(preset, seed=SEED, trainer=replace(preset.trainer, loggers=[]))
        splits = read_images(self.config)
        self.splits = replace(splits, test=splits.validation)
        self.folder = folder
        (folder / "steps").mkdir()
        self.run = Run(folder, quiet=True)
        self.numbers = iter(range(10**6))

    def place(self):
        """A new folder."""
        place = self.folder / str(next(self.numbers))
        place.mkdir()
        return place

    def teacher(self):
        """The preset's teacher, trained."""
        place = self.place()
        train_teacher(self.config, self.splits, place, self.run)
        return make_teacher(self.config, self.splits, place / "weights.safetensors")

    def accuracy(self, config, name, teacher, labels):
        """Validation accuracy in percent after pre-training and fine-tuning."""
        arm, place = ARMS.get(name, Arm()), self.place()
        found = pretrain_arm(config, self.splits, arm, teacher, SEED, place, self.run, name)
        outcome = evaluate_arm(
            config, self.splits, arm, found, place / "weights.safetensors", SEED, labels, self.place(), run=self.run,
            step=name,
        )  # fmt: skip
        return round(outcome[labels]["validation"][metric_of(self.splits.name)], 2)


def best(rows):
    """The learning rate of the best candidate."""
    return max(rows, key=lambda row: row["accuracy"])["learning_rate"]


def main():
    """Try the candidates; write what they reach and which are chosen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parent / f"results/relation-choice-{arguments.preset}.json"
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp())
    try:
        trials = Trials(PRESETS[arguments.preset], scratch)
        config, splits = trials.config, trials.splits
        finetuning, pretraining = [], []
        untrained = make_teacher(config, splits, None)
        for change in FINETUNING:
            epochs = config.finetune.epochs * change.get("longer", 1)
            tried = replace(config.finetune, learning_rate=change["learning_rate"], epochs=epochs)
            accuracy = trials.accuracy(replace(config, finetune=tried), "scratch", untrained, "full")
            finetuning.append({"learning_rate": tried.learning_rate, "epochs": epochs, "accuracy": accuracy})
            print(finetuning[-1], flush=True)
        rate = best([row for row in finetuning if row["epochs"] == config.finetune.epochs])
        config = replace(config, finetune=replace(config.finetune, learning_rate=rate))
        teacher = trials.teacher()
        for change in PRETRAINING:
            tried = replace(config, distil=replace(config.distil, **change))
            arms = {arm: trials.accuracy(tried, arm, teacher, "few") for arm in DISTILLED}
            pretraining.append(change | {"arms": arms, "accuracy": round(sum(arms.values()) / len(arms), 2)})
            print(pretraining[-1], flush=True)
    finally:
        shutil.rmtree(scratch)
    chosen = {"finetune.learning_rate": rate, "distil.learning_rate": best(pretraining)}
    found = {
        "preset": arguments.preset, "data": splits.name, "seed": SEED, "validation_images": len(splits.validation),
        "finetuning": finetuning, "pretraining": pretraining, "chosen": chosen,
        "minutes": round((time.monotonic() - began) / 60, 1), "environment": environment("cpu"),
    }  # fmt: skip
    write_atomically(out, json.dumps(found, indent=1) + "\n")
    write_atomically(out.with_suffix(".args"), " ".join(f"--{name} {value}" for name, value in chosen.items()) + "\n")


if __name__ == "__main__":
    main()
