"""The verbs ``distil`` and ``chain``: pre-training on images without labels, in one step or through several sizes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenfold.attention.heads import heads_per_block
from tenfold.cost import count_flops, count_parameters
from tenfold.data import Preprocessing, Splits
from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.models.folder import save_model
from tenfold.run import Run, open_run
from tenfold.settings import PositiveInt, Seed, check_settings
from tenfold.systems.relation_distillation.cli.options import (
    NAMED,
    Distillation,
    ViewOptions,
    training_results,
)
from tenfold.systems.relation_distillation.data.images import load_images, unlabelled_images
from tenfold.systems.relation_distillation.data.views import pretraining_batches, require_memory
from tenfold.systems.relation_distillation.experiment.pretraining import save_weights
from tenfold.systems.relation_distillation.method import RelationDistiller
from tenfold.systems.relation_distillation.training.pretrain import Pretraining, agreement_on, pretrain_from_teacher
from tenfold.systems.relation_distillation.vit.build import SYSTEM, build_vit, pretraining_student
from tenfold.systems.relation_distillation.vit.preprocessing import IMAGENET_STATISTICS
from tenfold.systems.relation_distillation.vit.teachers import Teacher, load_teacher
from tenfold.systems.relation_distillation.vit.vision_transformer import SIZES, set_drop_path
from tenfold.training.options import TrainerOptions
from tenfold.training.parallel import rank

_VIEWS, _DISTILLATION = ViewOptions(), Distillation()


@dataclass
class DistilConfig:
    """What ``config.yaml`` of a distillation holds: the arguments of `distil`."""

    preset: str
    data: str
    teacher: str
    student: str
    root: str | None
    teacher_weights: str | None
    teacher_heads: list[PositiveInt] | None
    teacher_arguments: dict[str, Any] | None
    student_arguments: dict[str, Any] | None
    images: ViewOptions
    training: Distillation
    trainer: TrainerOptions
    seed: Seed


def distil(
    data: str,
    teacher: str,
    student: str,
    *,
    out: str,
    root: str | None = None,
    teacher_weights: str | None = None,
    teacher_heads: list[int] | None = None,
    teacher_arguments: dict[str, Any] | None = None,
    student_arguments: dict[str, Any] | None = None,
    images: ViewOptions = _VIEWS,
    training: Distillation = _DISTILLATION,
    trainer: TrainerOptions | None = None,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Pre-train a student on images without labels.

    Args:
        data: folder of images at any depth, tar shards, or the name of a data set such as clothing64.
        teacher: model folder, official MAE or TinyMIM file, transformers folder, or timm/NAME with --teacher_weights.
        student: tiny, small, base, large; WIDTHxDEPTHxHEADS such as 192x12x3; or timm/NAME.
        out: folder of the pre-trained student, its checkpoints, log of epochs and results.
        root: folder of a named data set.
        teacher_weights: file with the weights of timm/NAME.
        teacher_heads: heads of a teacher's file that was not published: one number, or one per block.
        teacher_arguments: further arguments of a teacher timm/NAME, such as '{dynamic_img_size: true}'.
        student_arguments: likewise, of a student timm/NAME.
        images: what the student sees.
        training: how it learns.
        trainer: where it runs.
        seed: of weights, order and crops.
        resume: continue the training that the folder holds.
        quiet: no progress on the console.
    """
    config = DistilConfig(
        "distil",
        data,
        teacher,
        student,
        root,
        teacher_weights,
        teacher_heads,
        teacher_arguments,
        student_arguments,
        images,
        training,
        trainer or TrainerOptions(),
        seed,
    )
    check_settings(config)
    splits = _images(data, root, images)
    shape = {"image_size": splits.image_shape[-1], "channels": splits.image_shape[0]}
    taught_by = load_teacher(
        teacher, **shape, weights=teacher_weights, heads=teacher_heads, arguments=teacher_arguments
    )
    name, sizes = student_sizes(student)
    sizes |= shape | {"patch": training.patch} | ({"arguments": student_arguments} if student_arguments else {})
    if images.views is not None:
        require_memory(images.views, len(splits.train), splits.image_shape, images.cache_mb)
    try:  # what does not fit fails before anything is written
        RelationDistiller(
            pretraining_student(name, **sizes),
            taught_by.network,
            training.pairs,
            heads=training.heads,
            teacher_layer=training.teacher_layer or "auto",
            example=splits.example(2),
        ).release()
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"student, teacher and images do not fit: {' '.join(str(error).split())[:200]}") from error
    run = open_run(config, system=SYSTEM, out=out, resume=resume, quiet=quiet)
    try:
        found = run.step("distillation", lambda folder: _train(config, splits, taught_by, name, sizes, folder, run))
        if not (run.folder / "results.json").exists():
            _deliver(config, splits, taught_by, name, sizes, found, run)
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    return {
        "model": out,
        "parameters": found["parameters"],
        "heads": found["heads"],
        "teacher_layer": found["teacher_layer"],
        "loss": found["history"][-1]["train/loss"],
        "agreement": found["agreement"],
    }


def _train(
    config: DistilConfig, splits: Splits, teacher: Teacher, name: str, sizes: dict[str, Any], folder: Path, run: Run
) -> dict[str, Any]:
    training, device = config.training, config.trainer.device
    batch_size = min(training.batch_size, len(splits.train))
    rate = 1.5e-4 * batch_size / 256 if training.learning_rate is None else training.learning_rate
    torch.manual_seed(config.seed)
    student = pretraining_student(name, **sizes)
    task = RelationDistiller(
        student,
        teacher.network,
        training.pairs,
        heads=training.heads,
        teacher_layer=training.teacher_layer or "auto",
        example=splits.example(2),
    )
    set_drop_path(student, training.drop_path)
    batches = pretraining_batches(
        splits,
        batch_size,
        seed=config.seed,
        crop_scale=(config.images.crop_scale, 1.0),
        jitter=0.4,
        views=config.images.views,
        cache_mb=config.images.cache_mb,
    )
    step = f"distil {config.student}"
    fitted = pretrain_from_teacher(
        task,
        batches,
        Pretraining(training.epochs, rate, warmup_epochs=15.0 * training.epochs / 300),
        splits=splits,
        teacher=teacher,
        folder=folder,
        cache_mb=config.images.cache_mb,
        trainer=config.trainer,
        validate=lambda module: agreement_on(module, splits, teacher, device),
        on_epoch=lambda epoch, row: run.progress(step, epoch, training.epochs, f"loss {row['train/loss']:.4f}"),
    )
    set_drop_path(student, 0.0)
    agreement = agreement_on(task.cpu(), splits, teacher, torch.device("cpu"))
    if rank() == 0:
        save_weights(student.cpu(), folder / "weights.safetensors")
    return {
        "history": fitted.history,
        "agreement": agreement,
        "heads": heads_per_block(student),
        "untrained": task.untrained,
        "teacher_layer": task.layers[0][1],
        "parameters": count_parameters(student),
        "batch_size": batch_size,
        "learning_rate": rate,
    }


def _deliver(
    config: DistilConfig,
    splits: Splits,
    teacher: Teacher,
    name: str,
    sizes: dict[str, Any],
    found: dict[str, Any],
    run: Run,
) -> None:
    student = build_vit(name, **sizes | {"heads": found["heads"]})
    weights = run.folder / "steps/distillation/weights.safetensors"
    load_strictly(student, read_safetensors(weights), weights)
    if rank() == 0:
        save_model(
            run.folder,
            student.eval(),
            system=SYSTEM,
            builder=name,
            arguments=sizes | {"heads": found["heads"]},
            extra={
                "preprocessing": splits.preprocessing.to_dict(),
                "prefix_tokens": student.num_prefix_tokens,
                "pairs": config.training.pairs,
                "student_layer": len(student.blocks),
                "teacher_layer": found["teacher_layer"],
                "teacher": teacher.source,
                "teacher_sha256": teacher.fingerprint,
                "untrained": found["untrained"],
            },
        )
    run.finish(
        training_results(
            run,
            "distil",
            seed=config.seed,
            history=found["history"],
            params=found["parameters"],
            metrics={"loss": found["history"][-1]["train/loss"], **found["agreement"]},
            flops=count_flops(student, splits.example(1), convention="multiply-adds"),
            device=config.trainer.device.type,
            summary=f"{config.student} learnt its teacher's relations on {len(splits.train):,} images without labels: "
            f"the loss fell from {found['history'][0]['train/loss']:.3f} to {found['history'][-1]['train/loss']:.3f}.",
            data=splits.name,
            train_images=len(splits.train),
            notes=[
                *splits.notes,
                f"The student ({config.student}) learnt from {teacher.source}, without labels, in steps "
                f"of {found['batch_size']} images at a learning rate of {found['learning_rate']:.3g}.",
            ],
        )
    )


def chain(
    data: str,
    teacher: str,
    students: list[str],
    *,
    out: str,
    root: str | None = None,
    teacher_weights: str | None = None,
    teacher_heads: list[int] | None = None,
    teacher_arguments: dict[str, Any] | None = None,
    images: ViewOptions = _VIEWS,
    training: Distillation = _DISTILLATION,
    trainer: TrainerOptions | None = None,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Distil through several sizes, each student the next one's teacher.

    Args:
        data: see distil.
        teacher: the first teacher, see distil.
        students: in their order, such as '[base, small, tiny]'; each one as in distil.
        out: folder; each stage gets a folder in it, named by its number and student.
        root: see distil.
        teacher_weights: see distil.
        teacher_heads: see distil.
        teacher_arguments: see distil.
        images: see distil.
        training: of each stage, see distil.
        trainer: see distil.
        seed: see distil.
        resume: continue the chain that the folder holds; finished stages stay.
        quiet: see distil.
    """
    if not students:
        raise UserError("name at least one student, such as '[base, small, tiny]'")
    folders = [Path(out) / f"{number}-{name.replace('/', '-')}" for number, name in enumerate(students, 1)]
    for student, folder in zip(students, folders, strict=True):
        student_sizes(student)
        if folder.exists() and not resume:
            raise UserError(f"{folder} is there already; continue the chain with --resume, or name another folder")
    stages: list[dict[str, Any]] = []
    first: dict[str, Any] = {
        "teacher_weights": teacher_weights,
        "teacher_heads": teacher_heads,
        "teacher_arguments": teacher_arguments,
    }
    for student, folder in zip(students, folders, strict=True):
        stages.append(
            distil(
                data,
                teacher,
                student,
                out=str(folder),
                root=root,
                images=images,
                training=training,
                trainer=trainer,
                seed=seed,
                resume=resume,
                quiet=quiet,
                **first,
            )
        )
        teacher, first = str(folder), {}
    return {"model": teacher, "stages": stages}


def student_sizes(name: str) -> tuple[str, dict[str, Any]]:
    """The builder's name and the sizes of a student that the command line names.

    Raises:
        UserError: there is no such student.
    """
    if name in SIZES:
        return "vit", dict(SIZES[name])
    if name.startswith("timm/"):
        return name, {}
    parts = name.split("x")
    if len(parts) == 3 and all(part.isdecimal() and int(part) for part in parts):
        return "vit", dict(zip(("width", "depth", "heads"), map(int, parts), strict=True))
    raise UserError(
        f"there is no student {name!r}; there are: {', '.join(SIZES)}, timm/NAME, and WIDTHxDEPTHxHEADS (192x12x3)"
    )


def _images(data: str, root: str | None, options: ViewOptions) -> Splits:
    """A named data set, or a user's images without labels, of which only the training split counts."""
    if data in NAMED:
        return load_images(data, root=root, image_size=options.image_size, workers=options.workers)
    found = unlabelled_images(data, leave_out=options.unreadable == "leave-out")
    return Splits(
        name=data,
        train=found,  # type: ignore[arg-type]
        validation=found,  # type: ignore[arg-type]
        test=found,  # type: ignore[arg-type]
        preprocessing=Preprocessing.cropped(options.image_size, *IMAGENET_STATISTICS, interpolation="bicubic"),
        workers=options.workers,
        notes=tuple(getattr(found, "notes", ())),
    )
