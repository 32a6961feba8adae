"""The verbs ``distil`` and ``chain``."""

from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.cost import count_parameters
from tenfold.data import Preprocessing, Splits
from tenfold.errors import UserError
from tenfold.export import load_manifest, save_model
from tenfold.options import Precision, TrainerOptions
from tenfold.parallel import rank
from tenfold.run import read_json
from tenfold.systems.relation_distillation.attention.heads import heads_per_block
from tenfold.systems.relation_distillation.cli.training_folder import NAMED, WHERE, Lines, begun, check_settings, settle
from tenfold.systems.relation_distillation.data.images import IMAGENET_STATISTICS, load_images, unlabelled_images
from tenfold.systems.relation_distillation.experiment.arms import Arm
from tenfold.systems.relation_distillation.experiment.pretraining import (
    agreement_with,
    distil_student,
    make_student,
    make_task,
)
from tenfold.systems.relation_distillation.experiment.settings import (
    Config,
    DataOptions,
    DistilOptions,
    StudentOptions,
    TeacherOptions,
)
from tenfold.systems.relation_distillation.vit.build import build_vit, load_model_folder
from tenfold.systems.relation_distillation.vit.official_files import load_official, load_teacher_weights
from tenfold.systems.relation_distillation.vit.teachers import Teacher, fingerprint, load_transformers
from tenfold.systems.relation_distillation.vit.vision_transformer import SIZES


def distil(
    data: str, teacher: str, student: str, *, out: str, teacher_weights: str | None = None,
    teacher_layer: int | None = None, heads: Literal["auto", "adaptive", "mean"] | int = "auto",
    pairs: list[str] | None = None, patch: int = 16, image_size: int = 224, epochs: int = 300, batch_size: int = 4096,
    learning_rate: float | None = None, drop_path: float = 0.1, crop_scale: float = 0.2, views: int | None = None,
    root: str | None = None, workers: int = 0, devices: int = 1, precision: Precision = "32-true", seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Pre-train a student on images without labels; continues where it was stopped.

    Args:
        data: folder of images at any depth, tar shards, or the name of a data set such as clothing64.
        teacher: model folder, official MAE or TinyMIM file, transformers folder, or timm/NAME with --teacher_weights.
        student: tiny, small, base, large; WIDTHxDEPTHxHEADS such as 192x12x3; or timm/NAME.
        out: folder of the pre-trained student, its checkpoints and its log of epochs.
        teacher_weights: file with the weights of timm/NAME.
        teacher_layer: block from 1; by the rule where not given (the last of equal depths, else three quarters up).
        heads: how head counts are made equal, see the settings.
        pairs: relations; qk and vv where not given.
        patch: side of the student's patches.
        image_size: side of the images.
        epochs: passes over the images.
        batch_size: images of a step, over all processes.
        learning_rate: of AdamW; 1.5e-4 times batch size over 256 where not given.
        drop_path: of every block of the student but the last.
        crop_scale: smallest share of an image's area that a crop takes.
        views: fixed crops of each image whose teacher's side is computed once, for small sets in memory.
        root: folder of a named data set.
        workers: processes that decode image files.
        devices: number of devices.
        precision: Lightning's precision, such as bf16-mixed.
        seed: of weights, order and crops.
        quiet: no progress on the console.
    """
    arguments = {name: value for name, value in locals().items() if name not in WHERE}
    folder = settle(out, arguments)
    splits = _images(data, root, image_size, workers)
    taught_by = _load_teacher(teacher, teacher_weights, splits)
    sizes = _student_of(student)
    batch_size = min(batch_size, len(splits.train))
    config = Config(
        arms=[],
        data=DataOptions(crop_scale=crop_scale),
        teacher=TeacherOptions(name="given", patch=patch),
        student=sizes,
        distil=DistilOptions(
            epochs=epochs, batch_size=batch_size, drop_path=drop_path, pairs=pairs or ["qk", "vv"],
            learning_rate=1.5e-4 * batch_size / 256 if learning_rate is None else learning_rate,
            warmup_epochs=15.0 * epochs / 300, teacher_layer=teacher_layer, heads=heads, views=views,
        ),
        trainer=TrainerOptions(devices=devices, precision=precision),
    )  # fmt: skip
    _check_fit(config, splits, taught_by)
    torch.manual_seed(seed)
    network = make_student(config, splits)
    with begun(folder, arguments):
        fitted, task = distil_student(
            config, splits, Arm(), taught_by, network, seed, folder / "training", Lines(quiet), f"distil {student}"
        )
    assert fitted is not None
    agreement = agreement_with(task.cpu().eval(), splits, taught_by, torch.device("cpu"))
    if rank() == 0:
        save_model(
            folder, network.cpu(), system="relation-distillation", builder=sizes.name,
            arguments={
                "image_size": splits.image_shape[-1], "channels": splits.image_shape[0], "patch": patch,
                "width": sizes.width, "depth": sizes.depth, "heads": heads_per_block(network),
            },
            extra={
                "mean": list(splits.mean), "std": list(splits.std), "prefix_tokens": network.num_prefix_tokens,
                "pairs": config.distil.pairs, "student_layer": len(network.blocks), "teacher_layer": task.layers[0][1],
                "teacher": taught_by.source, "teacher_sha256": taught_by.fingerprint, "untrained": task.untrained,
            },
        )  # fmt: skip
    return {
        "model": str(folder), "parameters": count_parameters(network), "heads": heads_per_block(network),
        "teacher_layer": task.layers[0][1], "loss": fitted.history[-1]["train/loss"], "agreement": agreement,
    }  # fmt: skip


def chain(
    data: str, teacher: str, students: list[str], *, out: str, teacher_weights: str | None = None, patch: int = 16,
    image_size: int = 224, epochs: int = 300, batch_size: int = 4096, learning_rate: float | None = None,
    drop_path: float = 0.1, crop_scale: float = 0.2, views: int | None = None, root: str | None = None,
    workers: int = 0, devices: int = 1, precision: Precision = "32-true", seed: int = 0, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Distil through several sizes, each student the next one's teacher; continues where it was stopped.

    Args:
        data: see distil.
        teacher: the first teacher, see distil.
        students: in their order, such as '[base, small, tiny]'; each one as in distil.
        out: folder; each stage gets a folder in it, named by its number and student.
        teacher_weights: see distil.
        patch: see distil.
        image_size: see distil.
        epochs: of each stage.
        batch_size: see distil.
        learning_rate: see distil.
        drop_path: see distil.
        crop_scale: see distil.
        views: see distil.
        root: see distil.
        workers: see distil.
        devices: see distil.
        precision: see distil.
        seed: see distil.
        quiet: see distil.
    """
    shared = {
        name: value for name, value in locals().items() if name not in ("teacher", "students", "out", "teacher_weights")
    }
    if not students:
        raise UserError("name at least one student, such as '[base, small, tiny]'")
    for student in students:
        _student_of(student)
    stages = []
    for number, student in enumerate(students, 1):
        folder = Path(out) / f"{number}-{student.replace('/', '-')}"
        if (folder / "model.json").exists():
            what = {name: value for name, value in shared.items() if name not in WHERE}
            check_settings(folder, what | {"teacher": teacher, "student": student})
            stages.append({"model": str(folder)})
        else:
            weights = teacher_weights if number == 1 else None
            stages.append(distil(teacher=teacher, student=student, out=str(folder), teacher_weights=weights, **shared))
        teacher = str(folder)
    return {"model": teacher, "stages": stages}


def _images(data: str, root: str | None, size: int, workers: int) -> Splits:
    """A named data set, or a user's images without labels, of which only the training split counts."""
    if data in NAMED:
        return load_images(data, root=root, image_size=size, workers=workers)
    images: Any = unlabelled_images(data)
    return Splits(
        name=data,
        train=images,
        validation=images,
        test=images,
        preprocessing=Preprocessing.cropped(size, *IMAGENET_STATISTICS, interpolation="bicubic"),
        workers=workers,
    )


def _student_of(name: str) -> StudentOptions:
    if name in SIZES:
        sizes = SIZES[name]
        return StudentOptions(width=sizes["width"], depth=sizes["depth"], heads=sizes["heads"])
    if name.startswith("timm/"):
        return StudentOptions(name=name)
    parts = name.split("x")
    if len(parts) == 3 and all(part.isdecimal() for part in parts):
        return StudentOptions(width=int(parts[0]), depth=int(parts[1]), heads=int(parts[2]))
    raise UserError(
        f"there is no student {name!r}; there are: {', '.join(SIZES)}, timm/NAME, and WIDTHxDEPTHxHEADS (192x12x3)"
    )


def _load_teacher(name: str, weights: str | None, splits: Splits) -> Teacher:
    path = Path(name)
    mean, std = IMAGENET_STATISTICS
    if name.startswith("timm/"):
        if weights is None:
            raise UserError(f"nothing is fetched: name the file with the weights of {name} with --teacher_weights")
        network = build_vit(name, image_size=splits.image_shape[-1], channels=splits.image_shape[0])
        load_teacher_weights(network, weights)
        mean, std = (tuple(network.pretrained_cfg.get(key) or known) for key, known in (("mean", mean), ("std", std)))
    elif (path / "model.json").exists():
        network, extra = load_model_folder(path), load_manifest(path).extra
        mean, std = tuple(extra["mean"]), tuple(extra["std"])
    elif path.is_dir():
        network = load_transformers(name)
        processor = path / "preprocessor_config.json"
        if processor.exists():
            found = read_json(processor)
            mean, std = tuple(found.get("image_mean") or mean), tuple(found.get("image_std") or std)
    elif path.exists():
        network = load_official(path)
    else:
        raise UserError(f"there is no teacher {name!r}: name a model folder, an official file, or timm/NAME")
    if len(mean) != splits.image_shape[0]:
        raise UserError(f"the teacher takes {len(mean)} channels; the images have {splits.image_shape[0]}")
    return Teacher(network.eval(), mean, std, fingerprint(network), name)


def _check_fit(config: Config, splits: Splits, teacher: Teacher) -> None:
    """Build everything once: what does not fit fails before anything is written."""
    try:
        make_task(config, splits, Arm(), teacher, make_student(config, splits))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"student, teacher and images do not fit: {' '.join(str(error).split())[:200]}") from error
