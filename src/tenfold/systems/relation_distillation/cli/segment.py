"""The verb ``segment``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenfold.cost import count_flops, count_parameters
from tenfold.errors import UserError
from tenfold.models.folder import load_manifest
from tenfold.run import open_run
from tenfold.settings import Count, PositiveInt, Seed, check_settings
from tenfold.systems.relation_distillation.cli.options import training_results
from tenfold.systems.relation_distillation.data.ade20k import find_ade20k
from tenfold.systems.relation_distillation.evaluation.segmentation import evaluate_segmentation
from tenfold.systems.relation_distillation.training.segmentation import SegmentationTraining, train_segmentation
from tenfold.systems.relation_distillation.vit.build import SYSTEM, load_model_folder
from tenfold.systems.relation_distillation.vit.preprocessing import statistics_of
from tenfold.systems.relation_distillation.vit.segmentation_network import SegmentationNetwork
from tenfold.training.options import TrainerOptions

_TRAINING = SegmentationTraining()


@dataclass
class SegmentConfig:
    """What ``config.yaml`` of a segmentation holds: the arguments of `segment`."""

    preset: str
    model: str
    root: str
    crop: PositiveInt
    channels: PositiveInt
    training: SegmentationTraining
    trainer: TrainerOptions
    workers: Count
    seed: Seed


def segment(
    run: str,
    root: str,
    *,
    out: str | None = None,
    crop: int = 512,
    channels: int = 768,
    training: SegmentationTraining = _TRAINING,
    trainer: TrainerOptions | None = None,
    workers: int = 0,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune a pre-trained student on ADE20K and measure its mIoU.

    Args:
        run: folder of a run, whose pre-trained student is taken, or of a pre-trained model.
        root: folder ADEChallengeData2016.
        out: folder of checkpoints and results; RUN/segmentation where not given.
        crop: side of the images in pixels.
        channels: of the decoder.
        training: how long and how.
        trainer: where it runs.
        workers: processes that read images.
        seed: of initial weights, order and crops.
        resume: continue the training that the folder holds.
        quiet: no progress on the console.
    """
    where = trainer or TrainerOptions()
    config = SegmentConfig("segment", run, root, crop, channels, training, where, workers, seed)
    check_settings(config)
    source = Path(run) / "pretrained" if (Path(run) / "pretrained" / "model.json").exists() else Path(run)
    backbone, manifest = load_model_folder(source), load_manifest(source)
    if manifest.arguments.get("num_classes"):
        raise UserError(f"{source} is fine-tuned for classes of images; name a pre-trained network")
    pairs, held = find_ade20k(root, "training"), find_ade20k(root, "validation")
    mean, std = statistics_of(manifest.extra)
    torch.manual_seed(seed)
    model = SegmentationNetwork(backbone, crop=crop, channels=channels)
    opened = open_run(config, system=SYSTEM, out=out or Path(run) / "segmentation", resume=resume, quiet=quiet)

    def work(folder: Path) -> dict[str, Any]:
        fitted = train_segmentation(
            model,
            pairs,
            training,
            folder=folder,
            mean=mean,
            std=std,
            workers=workers,
            seed=seed,
            trainer=where,
            on_epoch=lambda epoch, row: opened.progress("segment", epoch, 0, f"loss {row['train/loss']:.3f}"),
        )
        return {**evaluate_segmentation(model, held, mean=mean, std=std), "history": fitted.history}

    try:
        found = opened.step("segmentation", work)
        history = found.pop("history")
        if not (opened.folder / "results.json").exists():
            opened.finish(
                training_results(
                    opened,
                    "segment",
                    seed=seed,
                    metrics=found,
                    history=history,
                    params=count_parameters(model),
                    flops=count_flops(model, torch.zeros(1, 3, crop, crop), convention="multiply-adds"),
                    device=where.device.type,
                    summary=f"Segmentation reaches {found['miou']:.1f} mIoU on {len(held):,} images.",
                    data="ade20k",
                    train_images=len(pairs),
                    notes=[f"mIoU and pixel accuracy at the original size of {len(held)} images."],
                )
            )
    except UserError:
        opened.discard_if_nothing_was_done()
        raise
    return found | {"images": len(held)}
