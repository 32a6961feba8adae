"""The command ``evaluate``."""

from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.export import Manifest, load_manifest
from tenfold.run import read_config
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

CPU = torch.device("cpu")


def load_classifier(folder: str) -> tuple[Any, Manifest]:
    """The fine-tuned network of a folder, with its manifest."""
    model, manifest = load_model_folder(folder), load_manifest(folder)
    if not manifest.arguments.get("num_classes"):
        raise UserError(f"{folder} holds a pre-trained network without classes: fine-tune it first")
    return model, manifest


def _splits_of(run: str, manifest: Manifest, data: str | None, root: str | None) -> Any:
    options: dict[str, Any] = {}
    # RUN/pretrained is a folder within its run.
    of = next((folder for folder in (Path(run), Path(run).parent) if (folder / "config.yaml").exists()), None)
    if of is not None:
        saved = read_config(of)["data"]
        options = {name: saved[name] for name in ("name", "root", "validation", "workers")}
    options |= {name: value for name, value in {"name": data, "root": root}.items() if value is not None}
    if "name" not in options:
        raise UserError(f"{run} names no data: name them with --data")
    name = options.pop("name")
    splits = load_images(name, image_size=manifest.arguments["image_size"], **options)
    shape = (manifest.arguments["channels"], *(manifest.arguments["image_size"],) * 2)
    if splits.image_shape != shape:
        raise UserError(f"the network takes images {shape}, those of {splits.name} are {splits.image_shape}")
    return splits.prepared(mean=tuple(manifest.extra["mean"]), std=tuple(manifest.extra["std"]))


def evaluate(run: str, *, data: str | None = None, root: str | None = None, batch_size: int = 256) -> dict[str, Any]:
    """Measure a run's network again: fine-tuned ones by their accuracy, all by frozen features.

    Args:
        run: folder of the run, or of a model; RUN/pretrained is the student before fine-tuning.
        data: name of the data, where not those of the run; or imagenet-a, imagenet-r, imagenet-c.
        root: folder of the data, where not that of the run.
        batch_size: images at a time.
    """
    if data in ("imagenet-a", "imagenet-r", "imagenet-c"):
        model, manifest = load_classifier(run)
        if root is None:
            raise UserError(f"name the folder of {data} with --root")
        measure = evaluate_corruptions if data == "imagenet-c" else evaluate_restricted
        size, extra = manifest.arguments["image_size"], manifest.extra
        return {"data": data} | measure(
            model, root, extra["classes"], size=size, mean=extra["mean"], std=extra["std"], batch_size=batch_size
        )
    model, manifest = load_model_folder(run), load_manifest(run)
    splits = _splits_of(run, manifest, data, root)
    answer: dict[str, Any] = {"data": splits.name, "images": len(splits.test)}
    if manifest.arguments.get("num_classes"):
        if manifest.arguments["num_classes"] != len(splits.classes):
            raise UserError(f"the network has {manifest.arguments['num_classes']} classes, {splits.name} has others")
        answer |= accuracies(*collect(model, model, splits.test_batches(batch_size), CPU))
        return answer
    parts = [
        collect(lambda images: patch_features(model, images), model, batches, CPU)
        for batches in (splits.plain_training_batches(batch_size), splits.test_batches(batch_size))
    ]
    return answer | {"knn": knn_accuracy(*parts[0], *parts[1]), "linear": linear_accuracy(*parts[0], *parts[1])}
