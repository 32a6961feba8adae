"""Relation distillation: the experiment, read from top to bottom.

Data, teacher (a masked autoencoder), the arms (from scratch, MAE on the student, class token, features, relations,
ablations), each pre-trained without labels and fine-tuned with the same budget, measurement on the test split,
comparison over seeds, delivery. Every function can be called on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tenfold
from tenfold.attention.heads import heads_per_block
from tenfold.cost import count_flops, count_parameters
from tenfold.data import Splits
from tenfold.files import read_json
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.models.folder import save_model
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import (
    load_images,
    unlabelled_images,
)
from tenfold.systems.relation_distillation.experiment.arms import Arm, arms_of
from tenfold.systems.relation_distillation.experiment.comparison import (
    claims_of,
    metric_of,
    plots_of,
    summarise,
    summary_of,
    tables_of,
)
from tenfold.systems.relation_distillation.experiment.finetuning import build_student_like, evaluate_arm
from tenfold.systems.relation_distillation.experiment.pretraining import (
    labelled,
    make_classifier,
    make_student,
    make_task,
    make_teacher,
    pretrain_arm,
    train_teacher,
)
from tenfold.systems.relation_distillation.experiment.settings import OWN_VALIDATION, Config
from tenfold.systems.relation_distillation.vit.teachers import Teacher
from tenfold.training.parallel import rank
from tenfold.workers import Step, do_steps

_TEACHER = "steps/teacher/weights.safetensors"


def run(config: Config, run: Run) -> Results:
    """Pre-train the teacher and all arms over all seeds, fine-tune, compare, deliver the student of ``relations``.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms = arms_of(config)
    splits = read_images(config)
    check_arms(config, splits, arms)
    if config.data.unlabelled:  # looked at before anything is trained
        unlabelled_images(config.data.unlabelled)
    phases = steps_of(config, arms)
    run.say(what_will_run(config, splits, phases))
    for note in splits.notes:
        run.say(note)
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    found = do_steps(
        run,
        phases,
        partial(open_place, config),
        workers=1 if alone else config.workers,
        threads=config.trainer.threads or 1,
        work=Place(config, splits, arms),
    )
    outcomes = outcomes_of(config, arms, found)
    lengths = lengths_of(config, splits.name, outcomes, found)
    learnt = found["teacher"]
    teacher = make_teacher(config, splits, run.folder / _TEACHER)
    delivered = run.step("delivery", lambda _: deliver(config, splits, teacher, outcomes["relations"][0], run))
    return Results(
        system="relation-distillation",
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        summary=summary_of(outcomes, splits.name, delivered["params"]),
        claims=claims_of(outcomes, splits.name, lengths),
        metrics=summarise(outcomes, splits.name),
        cost=Cost(
            params=delivered["params"],
            flops=delivered["flops"],
            seconds=run.seconds,
            peak_memory_mb=peak_process_memory_mb(),
        ),
        environment=environment(
            config.trainer.device.type,
            data=splits.name,
            train_images=len(splits.train),
            labelled_images=len(labelled(config, splits).train),
        ),
        plots=plots_of(outcomes, splits.name, learnt["history"]),
        tables=tables_of(outcomes, splits.name, lengths),
        notes=[
            *splits.notes,
            *_note_of_labels(config, splits),
            f"The teacher ({learnt['source']}) is the same in all arms and seeds; its nearest neighbours are right for "
            f"{learnt['knn']:.1f} % of the test images."
            if learnt["knn"] is not None
            else "The teacher is given.",
            "All arms have the same student, the same budget of student updates and the same fine-tuning; no epoch is "
            "chosen, the last one counts. The test split is only measured.",
            "The cost is in multiply-adds of one image.",
        ],
    )


def steps_of(config: Config, arms: Mapping[str, Arm]) -> list[list[Step]]:
    """The teacher; then every pre-training; then every fine-tuning: each phase needs those before it."""
    seeds = range(config.seed, config.seed + config.seeds)
    pretrainings = [
        Step(f"{name}/seed{seed}/pretraining", ("pretraining", name, seed))
        for seed in seeds
        for name, arm in arms.items()
        if not arm.uniform_heads  # it only fine-tunes in another way: the pre-training is that of ``relations``
    ]
    labels = ("full", "few") if config.finetune.few_labels else ("full",)
    finetunings = [
        Step(f"{name}/seed{seed}/{which}", ("finetuning", name, seed, which))
        for seed in seeds
        for name in arms
        for which in labels
    ]
    if config.finetune.longer:
        finetunings += [
            Step(f"{name}/seed{config.seed}/longer", ("finetuning", name, config.seed, "longer"))
            for name in ("scratch", "mae")
            if name in arms
        ]
    return [[Step("teacher", ("teacher",))], pretrainings, finetunings]


def what_will_run(config: Config, splits: Splits, phases: Sequence[Sequence[Step]]) -> str:
    """One line: how many trainings, of what."""
    trained = 0 if config.teacher.weights else 1
    taught = sum(step.arguments[1] != "scratch" for step in phases[1])
    return (
        f"{trained + taught + len(phases[2])} trainings on {len(splits.train):,} images of {splits.name}: "
        f"{trained} teacher, {taught} students without labels, {len(phases[2])} fine-tunings; fewer with "
        "--seeds, --arms and --finetune.few_labels 0"
    )


class Place:
    """Does the steps in one process: images and arms once, the teacher when the first student asks for it.

    Args:
        config: the settings.
        splits: the images.
        arms: the arms by name.
    """

    def __init__(self, config: Config, splits: Splits, arms: Mapping[str, Arm]) -> None:
        self.config, self.splits, self.arms = config, splits, arms
        self._teacher: Teacher | None = None

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """See `tenfold.workers.Work`."""
        config, splits = self.config, self.splits
        if step.name == "teacher":
            return train_teacher(config, splits, folder, run)
        kind, name, seed, *rest = step.arguments
        arm = self.arms[name]
        if kind == "pretraining":
            if self._teacher is None:
                self._teacher = make_teacher(config, splits, run.folder / _TEACHER)
            return pretrain_arm(config, splits, arm, self._teacher, seed, folder, run, step.name)
        base = run.folder / "steps" / pretraining_of(name, arm, seed)
        found = read_json(base / "result.json")
        labels = rest[0]
        if labels == "longer":
            options = config.finetune
            config = replace(config, finetune=replace(options, epochs=options.longer * options.epochs))
            labels = "full"
        return evaluate_arm(
            config, splits, arm, found, base / "weights.safetensors", seed, labels, folder, run=run, step=step.name
        )


def open_place(config: Config) -> Place:
    """What a worker process needs for any step."""
    return Place(config, read_images(config), arms_of(config))


def pretraining_of(name: str, arm: Arm, seed: int) -> str:
    """The step whose student an arm fine-tunes."""
    return f"{'relations' if arm.uniform_heads else name}/seed{seed}/pretraining"


def outcomes_of(
    config: Config, arms: Mapping[str, Arm], found: Mapping[str, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """For each arm and seed, what its steps found, in one mapping."""
    labels = ("full", "few") if config.finetune.few_labels else ("full",)
    return {
        name: [
            dict(found[pretraining_of(name, arm, seed)])
            | {key: value for which in labels for key, value in found[f"{name}/seed{seed}/{which}"].items()}
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for name, arm in arms.items()
    }


def lengths_of(
    config: Config, data: str, outcomes: Mapping[str, list[dict[str, Any]]], found: Mapping[str, dict[str, Any]]
) -> dict[str, dict[int, float]]:
    """Test accuracy of the first seed of the arms ``scratch`` and ``mae`` by epochs of fine-tuning, in percent."""
    lengths: dict[str, dict[int, float]] = {}
    options = config.finetune
    for name in ("scratch", "mae"):
        longer = found.get(f"{name}/seed{config.seed}/longer")
        if longer is not None:
            ends = ((options.epochs, outcomes[name][0]), (options.longer * options.epochs, longer))
            lengths[name] = {epochs: run["full"]["test"][metric_of(data)] for epochs, run in ends}
    return lengths


def _note_of_labels(config: Config, splits: Splits) -> list[str]:
    used = len(labelled(config, splits).train)
    if used == len(splits.train):
        return []
    return [f"Labels are used of the first {used:,} of the {len(splits.train):,} training images (finetune.labels)."]


def read_images(config: Config) -> Splits:
    """The images of the settings, split."""
    data = config.data
    return load_images(
        data.name,
        root=data.root,
        validation=OWN_VALIDATION.get(data.name) if data.validation is None else data.validation,
        image_size=data.image_size or 14 * config.teacher.patch,
        workers=data.workers,
        limit=data.limit,
        unreadable=data.unreadable,
    )


def check_arms(config: Config, splits: Splits, arms: dict[str, Arm]) -> None:
    """Build every arm once: what does not fit fails now, not after the teacher's training."""
    blank = make_teacher(config, splits, None)
    finetuning_batches(splits, 2, seed=0, randaugment=config.finetune.randaugment)
    for arm in arms.values():
        make_task(config, splits, arm, blank, make_student(config, splits))
        make_classifier(config, splits, heads_per_block(make_student(config, splits)))


def deliver(config: Config, splits: Splits, teacher: Teacher, found: dict[str, Any], run: Run) -> dict[str, Any]:
    """Write the fine-tuned student of ``relations`` as the run's model, and the pre-trained one beside it."""
    base = run.folder / f"steps/relations/seed{config.seed}"
    heads = found["full"]["heads"]
    classifier = make_classifier(config, splits, heads)
    weights, pretrained = base / "full/weights.safetensors", base / "pretraining/weights.safetensors"
    load_strictly(classifier, read_safetensors(weights), weights)
    classifier.eval()
    student = build_student_like(config, splits, found["heads"], read_safetensors(pretrained))
    arguments = {
        "image_size": splits.image_shape[-1],
        "channels": splits.image_shape[0],
        "patch": config.teacher.patch,
        "width": config.student.width,
        "depth": config.student.depth,
        **({"arguments": config.student.arguments} if config.student.arguments else {}),
    }
    shared = {
        "preprocessing": splits.preprocessing.to_dict(),
        "prefix_tokens": classifier.num_prefix_tokens,
        "pairs": list(config.distil.pairs),
        "student_layer": len(classifier.blocks),
        "teacher_layer": found["layer"],
        "teacher": teacher.source,
        "teacher_sha256": teacher.fingerprint,
    }
    if rank() == 0:
        save_model(
            run.folder / "pretrained",
            student,
            system="relation-distillation",
            builder=config.student.name,
            arguments=arguments | {"heads": found["heads"]},
            extra=shared | {"untrained": found["untrained"]},
        )
        save_model(
            run.folder,
            classifier,
            system="relation-distillation",
            builder=config.student.name,
            arguments=arguments | {"heads": heads, "num_classes": len(splits.classes)},
            extra=shared | {"classes": list(splits.classes)},
        )
    return {
        "params": count_parameters(classifier),
        "flops": count_flops(classifier, splits.example(1), convention="multiply-adds"),
    }
