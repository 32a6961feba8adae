"""Dual encoder: the experiment, read from top to bottom.

Questions; for each seed a fusion teacher; from it students that learn from labels, from its predictions, and from its
attention; accuracy by kind of question beside the majority answer; comparison over seeds; delivery of DiDE's student,
asked through an index. Every function can be called on its own.
"""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tenfold
from tenfold.cost import count_parameters
from tenfold.errors import UserError
from tenfold.results import Cost, Results
from tenfold.run import Run, environment, peak_process_memory_mb
from tenfold.systems.dual_encoder.attention.readers import SingleStream, TwoTowers, inputs_of
from tenfold.systems.dual_encoder.attention.remembering import remember
from tenfold.systems.dual_encoder.experiment.comparison import (
    claims_of,
    metrics_of,
    notes_of,
    plots_of,
    summary_of,
    tables_of,
)
from tenfold.systems.dual_encoder.experiment.serving import cache_difference, cost_of_kinds
from tenfold.systems.dual_encoder.experiment.settings import PRESETS, Arm, Config, StageOptions, arms_of
from tenfold.systems.dual_encoder.index.answerer import VisualAnswerer
from tenfold.systems.dual_encoder.index.throughput import measure_throughput
from tenfold.systems.dual_encoder.inputs.augment import rand_augment
from tenfold.systems.dual_encoder.inputs.batches import QuestionBatches, QuestionTensors
from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.load import save_dual_encoder
from tenfold.systems.dual_encoder.method import CrossModalAttentionLoss, DistillationObjective, LossWeights
from tenfold.systems.dual_encoder.networks.build import SYSTEM
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder, sharpen
from tenfold.systems.dual_encoder.scoring.measure import predict_answers, score_answers, summarize
from tenfold.systems.dual_encoder.sets.load_sets import image_size, load_question_sets
from tenfold.systems.dual_encoder.sets.questions import (
    QuestionSplits,
    VisualQuestions,
    hold_images,
    majority_answers,
)
from tenfold.systems.dual_encoder.training.initialise import start_from_fusion
from tenfold.systems.dual_encoder.training.optimizers import adamw, parameter_groups, warmup_linear
from tenfold.systems.dual_encoder.training.teachers import fusion_state, load_teacher
from tenfold.training import fit
from tenfold.training.parallel import rank
from tenfold.workers import Step, do_steps

__all__ = ["PRESETS", "Config", "run"]


def run(config: Config, run: Run) -> Results:
    """Train teacher and students over all seeds on all sets, compare them, deliver DiDE's student.

    Args:
        config: the settings.
        run: the run's folder; finished steps are read back from it.
    """
    arms, place = arms_of(config), Place(config, run.folder)
    for name, work in place.works.items():
        for note in work.splits.notes:
            run.say(f"{name}: {note}")
    seeds = range(config.seed, config.seed + config.seeds)
    names: list[str] = list(place.works)
    phases = [
        [Step(f"{name}/teacher/seed{seed}", (name, "teacher", seed)) for name in names for seed in seeds],
        [Step(f"{name}/{arm}/seed{seed}", (name, arm, seed)) for name in names for seed in seeds for arm in arms],
    ]
    alone = config.trainer.device.type != "cpu" or config.trainer.devices * config.trainer.num_nodes > 1
    opener = partial(Place, config, run.folder)
    found = do_steps(run, phases, opener, workers=1 if alone else config.workers, work=place)
    outcomes = {
        name: {arm: [found[f"{name}/{arm}/seed{seed}"] for seed in seeds] for arm in ("teacher", *arms)}
        for name in names
    }
    majority: dict[str, Any] = {name: work.majority() for name, work in place.works.items()}
    delivered = run.step("delivery", lambda _: deliver(config, place, run.folder))
    return Results(
        system=SYSTEM,
        preset=config.preset,
        seed=config.seed,
        version=tenfold.__version__,
        claims=claims_of(outcomes, delivered),
        metrics=metrics_of(outcomes, majority, delivered),
        cost=Cost(params=delivered["params"], flops=0.0, seconds=run.seconds, peak_memory_mb=peak_process_memory_mb()),
        environment=environment(
            config.trainer.device.type,
            data=", ".join(names),
            train_questions=len(place.works[names[0]].splits.train),
            test_questions=len(place.works[names[0]].splits.test),
        ),
        plots=plots_of(outcomes, majority, delivered),
        tables=tables_of(outcomes, majority, delivered),
        notes=[
            *(f"{name}: {note}" for name, work in place.works.items() for note in work.splits.notes),
            *notes_of(config, arms),
        ],
        summary=summary_of(outcomes, delivered),
    )


class Work:
    """One set with its tokenizer, its image preparation and the sizes of its networks.

    Args:
        config: the settings.
        name: of the set.
    """

    def __init__(self, config: Config, name: str) -> None:
        data, model = config.data, config.model
        own = name == data.name
        options = asdict(data)
        for key in ("name", "also"):
            del options[key]
        if not own:
            options |= {"root": None, "file": None}
            if name == "easy-vqa":
                options |= {"scenes": 0, "test": 0}
        self.splits: QuestionSplits = load_question_sets(name, seed=config.seed, **options)
        train = self.splits.train
        if model.vocabulary is None:
            self.tokenizer = QuestionTokenizer.of_words(train.questions, model.max_tokens)
        else:
            self.tokenizer = QuestionTokenizer.from_file(model.vocabulary, model.max_tokens)
        usual, patches = image_size(name, data.side)
        side, patch = (model.shorter if own else None) or usual, (model.patch if own else None) or patches
        if side % patch:
            raise UserError(f"model.shorter {side} is not whole patches of {patch}: set model.patch, too")
        self.preparation = ImagePreparation(
            patch=patch, shorter=side, longest=max(side, model.longest), square=model.square
        )
        if not model.augment:  # which changes images before they are prepared
            self.splits = hold_images(self.splits, self.preparation)
        self.sizes = Sizes(
            vocabulary=len(self.tokenizer.vocabulary),
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            patch=patch,
            grid=side // patch,
            max_tokens=model.max_tokens,
            images=train.images_per_question,
            dropout=model.dropout,
        )
        self.student_sizes = Sizes(**asdict(self.sizes) | {"layers": model.student_layers or model.layers})
        self.answers = train.answers
        longest = max(
            len(self.tokenizer.encode(question)) for part in self._parts() for question in set(part.questions)
        )
        self.length = longest

    def _parts(self) -> tuple[VisualQuestions, ...]:
        return self.splits.train, self.splits.validation, self.splits.test

    def tensors(self, part: VisualQuestions) -> QuestionTensors:
        """Questions as the networks take them; all parts are padded to one length."""
        return QuestionTensors(part, self.tokenizer, self.preparation, length=self.length)

    def majority(self) -> dict[str, Any]:
        """What the commonest answer to each question scores, without a look at the image."""
        test = self.splits.test
        return summarize(test, score_answers(test, majority_answers(self.splits.train, test)))


class Place:
    """The questions and networks that every step needs; calling it does a step.

    Args:
        config: the settings.
        folder: of the run.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.works: dict[str, Work] = {name: Work(config, name) for name in (config.data.name, *config.data.also)}
        if config.teacher.weights is not None:  # what cannot be loaded ends the run before any work
            for work in self.works.values():
                load_teacher(config.teacher.weights, work.sizes, work.answers)
        if config.model.start not in ("teacher", "random"):
            fusion_state(config.model.start)

    def __call__(self, step: Step, folder: Path, run: Run) -> dict[str, Any]:
        """Train the teacher, or a student, on a set with a seed."""
        name, arm, seed = step.arguments
        work = self.works[name]
        if arm == "teacher":
            return self.train_teacher(work, seed, folder, run, step.name)
        return self.train_student(work, name, arms_of(self.config)[arm], seed, folder, run, step.name)

    def teacher_of(self, work: Work, name: str, seed: int) -> FusionEncoder:
        """A set's trained teacher, frozen, in eval mode."""
        if self.config.teacher.weights is not None:
            return load_teacher(self.config.teacher.weights, work.sizes, work.answers).requires_grad_(False)
        teacher = FusionEncoder(work.sizes, len(work.answers))
        teacher.load_state_dict(load_file(self.folder / f"steps/{name}/teacher/seed{seed}/weights.safetensors"))
        return teacher.eval().requires_grad_(False)

    def student_of(self, work: Work, name: str, arm: str, seed: int) -> DualEncoder:
        """A trained student, in eval mode."""
        student = DualEncoder.from_sizes(work.student_sizes, len(work.answers))
        student.load_state_dict(load_file(self.folder / f"steps/{name}/{arm}/seed{seed}/weights.safetensors"))
        return student.eval().requires_grad_(False)

    def train_teacher(self, work: Work, seed: int, folder: Path, run: Run, step: str) -> dict[str, Any]:
        """The fusion encoder, from labels; one that is given is measured only."""
        torch.manual_seed(seed)
        options = self.config.teacher
        if options.weights is not None:
            teacher = load_teacher(options.weights, work.sizes, work.answers)
            fitted: dict[str, Any] = {"history": [], "train_seconds": 0.0}
        else:
            teacher = FusionEncoder(work.sizes, len(work.answers))
            if self.config.model.sharp:
                sharpen(teacher)
            task = work.splits.train.task
            objective = DistillationObjective(_plain, None, task, LossWeights(soft=0, attention=0, hard=1))
            fitted = self._fit(teacher, objective, work, options, seed, folder, run, step)
        return _finish(teacher, work, folder) | fitted

    def train_student(
        self, work: Work, name: str, arm: Arm, seed: int, folder: Path, run: Run, step: str
    ) -> dict[str, Any]:
        """A dual encoder, from what its arm says; all arms of a seed start from the same weights."""
        config = self.config
        torch.manual_seed(seed)
        student = DualEncoder.from_sizes(work.student_sizes, len(work.answers))
        teacher = self.teacher_of(work, name, seed)
        if config.model.start == "teacher":
            start_from_fusion(student, teacher)
        elif config.model.start != "random":
            start_from_fusion(student, fusion_state(config.model.start), config.model.start)
        elif config.model.sharp:
            sharpen(student)
        layers = pairs_of_layers(config.model.layers, work.student_sizes.layers, every=arm.every_layer)
        teacher.to(config.trainer.device)
        reader: Any = SingleStream(teacher, [theirs for _, theirs in layers]) if arm.soft or arm.attention else None
        if reader is not None and not config.model.augment:
            train = work.tensors(work.splits.train)
            reader = remember(reader, train, maps=bool(arm.attention), device=config.trainer.device)
        objective = DistillationObjective(
            TwoTowers([ours for ours, _ in layers]),
            reader,
            work.splits.train.task,
            LossWeights(arm.soft, arm.attention, arm.hard, config.distil.temperature),
            CrossModalAttentionLoss(arm.maps, query_rows=arm.query_rows, heads=config.distil.heads),
        )
        fitted = self._fit(student, objective, work, config.optimizer, seed, folder, run, step)
        return _finish(student, work, folder) | fitted

    def _fit(
        self,
        network: nn.Module,
        objective: DistillationObjective,
        work: Work,
        options: StageOptions,
        seed: int,
        folder: Path,
        run: Run,
        step: str,
    ) -> dict[str, Any]:
        augment = rand_augment if self.config.model.augment else None
        tensors = work.tensors(work.splits.train)
        epochs = max(1, round(options.steps * min(options.batch_size, len(tensors)) / len(tensors)))
        batches = QuestionBatches(
            tensors, options.batch_size, seed=seed, augment=augment, epoch_batches=math.ceil(options.steps / epochs)
        )
        validation = work.tensors(work.splits.validation)

        def validate(model: nn.Module) -> dict[str, float]:
            chosen = predict_answers(model, validation)
            return {"accuracy": float(100 * score_answers(validation.data, chosen).mean())}

        fitted = fit(
            network,
            objective,
            batches,
            epochs=epochs,
            optimizer=adamw(
                parameter_groups(network, options.learning_rate, options.weight_decay, options.classifier_factor)
            ),
            schedule=warmup_linear(epochs * len(batches), options.warmup),
            folder=folder,
            options=self.config.trainer,
            validate=validate,
            select="accuracy",
            on_epoch=lambda epoch, row: run.progress(
                step, epoch, epochs, f"loss {row['train/loss']:.3f}, accuracy {row['validation/accuracy']:.1f}"
            ),
        )
        return {"history": fitted.history, "best_epoch": fitted.best_epoch, "train_seconds": fitted.seconds}


def _plain(model: nn.Module, batch: Any, maps: bool) -> tuple[torch.Tensor, list]:
    """A reader of scores alone."""
    return model(**inputs_of(batch)), []


def pairs_of_layers(teacher: int, student: int, *, every: bool) -> list[tuple[int, int]]:
    """Pairs ``(student's layer, teacher's layer)``, counted from 1: the last ones, or every one of the student's.

    Args:
        teacher: layers of the teacher.
        student: layers of each tower.
        every: whether all layers are compared; the student's k-th with the teacher's at the same share of its depth.
    """
    if not every:
        return [(-1, -1)]
    return [(k, max(1, round(k * teacher / student))) for k in range(1, student + 1)]


def _finish(network: nn.Module, work: Work, folder: Path) -> dict[str, Any]:
    """Keep the weights; measure on the test questions."""
    network.eval()
    if rank() == 0:
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
    test = work.splits.test
    found = summarize(test, score_answers(test, predict_answers(network, work.tensors(test))))
    return found | {"params": count_parameters(network)}


def deliver(config: Config, place: Place, folder: Path) -> dict[str, Any]:
    """Write the first set's DiDE student, and ask it as it is served: exactness, size and speed of cached images."""
    name = config.data.name
    work = place.works[name]
    student, teacher = place.student_of(work, name, "dide", config.seed), place.teacher_of(work, name, config.seed)
    test = work.splits.test
    if rank() == 0:
        save_dual_encoder(folder, student, work.tokenizer, work.preparation, work.answers, test.task)
    answerer = VisualAnswerer(student, work.tokenizer, work.preparation, work.answers, test.task)
    tensors = work.tensors(test)
    return {
        "params": count_parameters(student),
        "teacher_params": count_parameters(teacher),
        "cache_difference": cache_difference(answerer, tensors, 64),
        "kinds": cost_of_kinds(answerer, tensors),
        "throughput": measure_throughput(answerer, teacher, tensors),
    }
