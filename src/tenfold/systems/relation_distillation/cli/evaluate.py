"""The command ``evaluate``."""

from pathlib import Path
from typing import Any

import torch

from tenfold.data import Splits
from tenfold.data.options import FILE_SETS
from tenfold.errors import UserError
from tenfold.models.folder import Manifest, load_manifest
from tenfold.run import read_config
from tenfold.settings import PositiveInt
from tenfold.systems.relation_distillation.cli.loading import load_classifier
from tenfold.systems.relation_distillation.cli.options import NAMED
from tenfold.systems.relation_distillation.data.images import load_images
from tenfold.systems.relation_distillation.evaluation.accuracy import (
    accuracies,
    collect,
    knn_accuracy,
    linear_accuracy,
    patch_features,
)
from tenfold.systems.relation_distillation.evaluation.robustness import evaluate_corruptions, evaluate_restricted
from tenfold.systems.relation_distillation.vit.build import load_model_folder
from tenfold.systems.relation_distillation.vit.preprocessing import preprocessing_of

CPU = torch.device("cpu")


def _splits_of(run: str, manifest: Manifest, data: str | None, root: str | None) -> Splits:
    options: dict[str, Any] = {}
    # RUN/pretrained is a folder within its run.
    of = next((folder for folder in (Path(run), Path(run).parent) if (folder / "config.yaml").exists()), None)
    saved = read_config(of) if of is not None else {}
    if isinstance(saved.get("data"), dict):  # of an experiment
        options = {name: saved["data"].get(name) for name in ("name", "root", "validation", "workers")}
    elif saved.get("preset") == "finetune":
        named = saved["data"] in NAMED
        options = {"name": saved["data"] if named else "folder", "root": saved["root"] if named else saved["data"]}
        options |= {name: saved[name] for name in ("validation", "workers", "unreadable")}
    if data is not None:  # settings of the run's own data do not act on others
        named = data in NAMED or data == "imagenet"
        options = {"name": data if named else "folder", "root": root if named else root or data}
    elif root is not None:
        options["root"] = root
    if "name" not in options:
        raise UserError(f"{run} names no labelled data: name them with --data")
    name = options.pop("name")
    preprocessing = preprocessing_of(manifest)
    size = preprocessing.size[0]
    splits = load_images(name, image_size=size, **options)
    if splits.image_shape[0] != preprocessing.channels or (name not in FILE_SETS and splits.image_shape[-1] != size):
        raise UserError(
            f"the network takes images {preprocessing.image_shape}, those of {splits.name} are {splits.image_shape}"
        )
    return splits.prepared(preprocessing=preprocessing)


def evaluate(
    run: str, *, data: str | None = None, root: str | None = None, batch_size: PositiveInt = 256
) -> dict[str, Any]:
    """Measure a run's network again: fine-tuned ones by their accuracy, all by frozen features.

    Args:
        run: folder of the run, or of a model; RUN/pretrained is the student before fine-tuning.
        data: name of the data or a folder with a folder per class, where not those of the run; or imagenet-a,
            imagenet-r, imagenet-c.
        root: folder of the data, where not that of the run.
        batch_size: images at a time.
    """
    if data in ("imagenet-a", "imagenet-r", "imagenet-c"):
        model, manifest = load_classifier(run)
        if root is None:
            raise UserError(f"name the folder of {data} with --root")
        measure = evaluate_corruptions if data == "imagenet-c" else evaluate_restricted
        found = measure(model, root, manifest.extra["classes"], preprocessing_of(manifest), batch_size=batch_size)
        return {"data": data} | found
    model, manifest = load_model_folder(run), load_manifest(run)
    splits = _splits_of(run, manifest, data, root)
    answer: dict[str, Any] = {"data": splits.name, "images": len(splits.test)}
    if manifest.arguments.get("num_classes"):
        if manifest.arguments["num_classes"] != len(splits.classes):
            raise UserError(
                f"the network has {manifest.arguments['num_classes']} classes, {splits.name} has {len(splits.classes)}"
            )
        known = manifest.extra.get("classes")
        if splits.name == "folder" and known != list(splits.classes):
            raise UserError(f"the network's classes are {known}, those of the folder {list(splits.classes)}")
        answer |= accuracies(*collect(model, model, splits.test_batches(batch_size), CPU))
        return answer
    parts = [
        collect(lambda images: patch_features(model, images), model, batches, CPU)
        for batches in (splits.plain_training_batches(batch_size), splits.test_batches(batch_size))
    ]
    return answer | {"knn": knn_accuracy(*parts[0], *parts[1]), "linear": linear_accuracy(*parts[0], *parts[1])}
