"""The verb ``segment``."""

import json
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError
from tenfold.export import load_manifest
from tenfold.options import Precision, TrainerOptions
from tenfold.run import write_atomically
from tenfold.systems.relation_distillation.data.ade20k import (
    find_ade20k,
)
from tenfold.systems.relation_distillation.evaluation.segmentation import evaluate_segmentation
from tenfold.systems.relation_distillation.training.segmentation import train_segmentation
from tenfold.systems.relation_distillation.vit.build import load_model_folder
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork


def segment(
    run: str, root: str, *, out: str | None = None, iterations: int = 160_000, batch_size: int = 16, crop: int = 512,
    channels: int = 768, learning_rate: float = 1e-4, layer_decay: float = 0.75, drop_path: float = 0.1,
    workers: int = 0, devices: int = 1, precision: Precision = "32-true", seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a pre-trained student on ADE20K and measure its mIoU; continues where it was stopped.

    Args:
        run: folder of a run, whose pre-trained student is taken, or of a pre-trained model.
        root: folder ADEChallengeData2016.
        out: folder of checkpoints and result; RUN/segmentation where not given.
        iterations: optimizer steps.
        batch_size: images of a step, over all processes.
        crop: side of the images in pixels.
        channels: of the decoder.
        learning_rate: of neck and heads.
        layer_decay: factor of the learning rate from one layer to the one below.
        drop_path: of the last block.
        workers: processes that read images.
        devices: number of devices.
        precision: Lightning's precision, such as bf16-mixed.
        seed: of initial weights, order and crops.
    """
    source = Path(run) / "pretrained" if (Path(run) / "pretrained" / "model.json").exists() else Path(run)
    backbone, manifest = load_model_folder(source), load_manifest(source)
    if manifest.arguments.get("num_classes"):
        raise UserError(f"{source} is fine-tuned for classes of images; name a pre-trained network")
    training, validation = find_ade20k(root, "training"), find_ade20k(root, "validation")
    torch.manual_seed(seed)
    model = SegmentationNetwork(backbone, crop=crop, channels=channels)
    statistics = {"mean": manifest.extra["mean"], "std": manifest.extra["std"]}
    folder = Path(out) if out else Path(run) / "segmentation"
    train_segmentation(
        model, training, folder=folder, iterations=iterations, batch_size=batch_size, learning_rate=learning_rate,
        layer_decay=layer_decay, drop_path=drop_path, workers=workers, seed=seed,
        trainer=TrainerOptions(devices=devices, precision=precision), **statistics,
    )  # fmt: skip
    answer = evaluate_segmentation(model, validation, **statistics) | {"images": len(validation)}

    write_atomically(folder / "segmentation.json", json.dumps(answer) + "\n")
    return answer
