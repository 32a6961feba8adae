"""The verb ``finetune``: a pre-trained network becomes a classifier of labelled images."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from tenfold.attention.heads import heads_per_block
from tenfold.cost import count_flops, count_parameters
from tenfold.data import Splits
from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_safetensors
from tenfold.models.folder import Manifest, load_manifest, save_model
from tenfold.run import Run, open_run
from tenfold.settings import Count, PositiveInt, Seed, check_settings
from tenfold.systems.relation_distillation.cli.options import (
    NAMED,
    FinetuningOptions,
    training_results,
)
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import load_images
from tenfold.systems.relation_distillation.evaluation.accuracy import accuracies, collect
from tenfold.systems.relation_distillation.experiment.pretraining import save_weights
from tenfold.systems.relation_distillation.training.finetune import Finetuning
from tenfold.systems.relation_distillation.training.finetune import finetune as train_classifier
from tenfold.systems.relation_distillation.vit.build import SYSTEM, build_vit, largest_difference, load_model_folder
from tenfold.systems.relation_distillation.vit.preprocessing import statistics_of
from tenfold.systems.relation_distillation.vit.vision_transformer import load_backbone
from tenfold.training.options import TrainerOptions
from tenfold.training.parallel import rank

_FINETUNING = FinetuningOptions()


@dataclass
class FinetuneConfig:
    """What ``config.yaml`` of a fine-tuning holds: the arguments of `finetune`."""

    preset: str
    model: str
    data: str
    root: str | None
    image_size: PositiveInt | None
    validation: PositiveInt | None
    labels: PositiveInt | None
    unreadable: str
    heads: str
    training: FinetuningOptions
    trainer: TrainerOptions
    workers: Count
    seed: Seed


def finetune(
    model: str,
    data: str,
    *,
    out: str,
    root: str | None = None,
    image_size: int | None = None,
    validation: int | None = None,
    labels: int | None = None,
    unreadable: Literal["refuse", "leave-out"] = "refuse",
    heads: Literal["as-pretrained", "uniform"] = "as-pretrained",
    training: FinetuningOptions = _FINETUNING,
    trainer: TrainerOptions | None = None,
    workers: int = 0,
    seed: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fine-tune a pre-trained folder on labelled images and measure it.

    Args:
        model: folder of a pre-trained network (of distil, import, or RUN/pretrained).
        data: folder with a folder per class (and train, test or val above them), or the name of a data set.
        out: folder of the classifier, its checkpoints, log of epochs and results.
        root: folder of a named data set.
        image_size: side of the images; the network's where not given; else its positions are resized.
        validation: images taken from the training split; a tenth where not given.
        labels: number of training images that are used, the first ones; all where not given.
        unreadable: what is done about files that cannot be read: refuse names them, leave-out goes on without them.
        heads: as-pretrained keeps each block's; uniform gives all blocks those of the first, as published.
        training: how long and how.
        trainer: where it runs.
        workers: processes that decode image files.
        seed: of head, order and augmentation.
        resume: continue the training that the folder holds.
        quiet: no progress on the console.
    """
    config = FinetuneConfig(
        "finetune",
        model,
        data,
        root,
        image_size,
        validation,
        labels,
        unreadable,
        heads,
        training,
        trainer or TrainerOptions(),
        workers,
        seed,
    )
    check_settings(config)
    manifest, pretrained = load_manifest(model), load_model_folder(model)
    if manifest.arguments.get("num_classes"):
        raise UserError(f"{model} is fine-tuned already; name a pre-trained network")
    splits = _splits(config, manifest)
    counts = heads_per_block(pretrained)
    arguments = manifest.arguments | {
        "image_size": splits.image_shape[-1],
        "num_classes": len(splits.classes),
        "heads": [counts[0]] * len(counts) if heads == "uniform" else counts,
    }
    load_backbone(build_vit(manifest.builder, **arguments), pretrained.state_dict())  # what does not fit fails now
    run = open_run(config, system=SYSTEM, out=out, resume=resume, quiet=quiet)
    try:
        found = run.step(
            "finetuning",
            lambda folder: _train(config, splits, pretrained, manifest.builder, arguments, folder, run),
        )
        if not (run.folder / "results.json").exists():
            _deliver(config, splits, manifest, arguments, found, run)
    except UserError:
        run.discard_if_nothing_was_done()
        raise
    return {"model": out} | {name: found[name] for name in ("heads", "head_reset", "validation", "test")}


def _splits(config: FinetuneConfig, manifest: Manifest) -> Splits:
    size = config.image_size or manifest.arguments["image_size"]
    named = config.data in NAMED
    splits = load_images(
        config.data if named else "folder",
        root=config.root if named else config.data,
        validation=config.validation,
        image_size=size,
        workers=config.workers,
        limit=config.labels,
        unreadable=config.unreadable,
        options="--",
    )
    wanted = (manifest.arguments["channels"], size, size)
    if splits.image_shape != wanted:
        raise UserError(f"the network takes images {wanted}, those of {config.data} are {splits.image_shape}")
    mean, std = statistics_of(manifest.extra)
    return splits.prepared(mean=mean, std=std)


def _train(
    config: FinetuneConfig,
    splits: Splits,
    pretrained: Any,
    builder: str,
    arguments: dict[str, Any],
    folder: Any,
    run: Run,
) -> dict[str, Any]:
    options = config.training
    torch.manual_seed(config.seed)
    classifier = build_vit(builder, **arguments)
    load_backbone(classifier, pretrained.state_dict())
    same_size = arguments["image_size"] == pretrained.patch_embed.img_size[0]
    moved = largest_difference(pretrained, classifier, splits.example(1)) if same_size else None
    batch_size = min(options.batch_size, len(splits.train))
    labelled = finetuning_batches(
        splits,
        batch_size,
        seed=config.seed,
        crop_scale=(options.crop_scale, 1.0),
        flip=options.flip,
        randaugment=options.randaugment,
    )
    rate = 5e-4 * batch_size / 256 if options.learning_rate is None else options.learning_rate
    fitted = train_classifier(
        classifier,
        labelled,
        Finetuning(
            options.epochs,
            rate,
            layer_decay=options.layer_decay,
            warmup_epochs=5.0 * options.epochs / 100,
            drop_path=options.drop_path,
            mixup=options.mixup,
            cutmix=options.cutmix,
            smoothing=options.smoothing,
            erase=options.erase,
        ),
        folder=folder,
        trainer=config.trainer,
        on_epoch=lambda epoch, row: run.progress("finetune", epoch, options.epochs, f"loss {row['train/loss']:.3f}"),
    )
    measured = {
        part: accuracies(*collect(classifier, classifier, batches, config.trainer.device))
        for part, batches in (("validation", splits.validation_batches()), ("test", splits.test_batches()))
    }
    if rank() == 0:
        save_weights(classifier.cpu(), folder / "weights.safetensors")
    return {
        **measured,
        "heads": arguments["heads"],
        "head_reset": moved,
        "history": fitted.history,
        "batch_size": batch_size,
        "learning_rate": rate,
    }


def _deliver(
    config: FinetuneConfig,
    splits: Splits,
    manifest: Manifest,
    arguments: dict[str, Any],
    found: dict[str, Any],
    run: Run,
) -> None:
    classifier = build_vit(manifest.builder, **arguments)
    weights = run.folder / "steps/finetuning/weights.safetensors"
    load_strictly(classifier, read_safetensors(weights), weights)
    kept = {name: value for name, value in manifest.extra.items() if name not in ("mean", "std")}
    if rank() == 0:
        save_model(
            run.folder,
            classifier.eval(),
            system=SYSTEM,
            builder=manifest.builder,
            arguments=arguments,
            extra=kept
            | {
                "preprocessing": splits.preprocessing.to_dict(),
                "classes": list(splits.classes),
                "accuracy": found["test"],
            },
        )
    run.finish(
        training_results(
            run,
            "finetune",
            seed=config.seed,
            history=found["history"],
            params=count_parameters(classifier),
            metrics={f"{part}_{name}": value for part in ("validation", "test") for name, value in found[part].items()},
            flops=count_flops(classifier, splits.example(1), convention="multiply-adds"),
            device=config.trainer.device.type,
            summary=f"The classifier is right for {found['test']['top1']:.1f} % of {len(splits.test):,} test images "
            f"after {config.training.epochs} epochs on {len(splits.train):,}.",
            data=splits.name,
            train_images=len(splits.train),
            notes=[
                *splits.notes,
                f"The network of {config.model} was fine-tuned in steps of {found['batch_size']} images "
                f"at a learning rate of {found['learning_rate']:.3g}; the last epoch counts.",
            ],
        )
    )
