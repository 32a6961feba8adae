"""The verb ``finetune``."""

from typing import Any, Literal

import torch

from tenfold.errors import UserError
from tenfold.export import load_manifest, save_model
from tenfold.options import Precision, TrainerOptions
from tenfold.parallel import rank
from tenfold.systems.relation_distillation.attention.heads import heads_per_block
from tenfold.systems.relation_distillation.cli.training_folder import NAMED, WHERE, Lines, begun, settle
from tenfold.systems.relation_distillation.data.finetuning_batches import finetuning_batches
from tenfold.systems.relation_distillation.data.images import load_images
from tenfold.systems.relation_distillation.evaluation.accuracy import accuracies, collect
from tenfold.systems.relation_distillation.training.finetune import finetune as train_classifier
from tenfold.systems.relation_distillation.vit.build import build_vit, largest_difference, load_model_folder
from tenfold.systems.relation_distillation.vit.vision_transformer import load_backbone


def finetune(
    model: str, data: str, *, out: str, root: str | None = None, image_size: int | None = None, validation: int = 200,
    labels: int | None = None, heads: Literal["as-pretrained", "uniform"] = "as-pretrained", epochs: int = 100,
    batch_size: int = 1024, learning_rate: float | None = None, layer_decay: float = 0.75, drop_path: float = 0.0,
    crop_scale: float = 0.08, flip: bool = True, randaugment: str | None = None, mixup: float = 0.0,
    cutmix: float = 0.0, smoothing: float = 0.0, erase: float = 0.0, workers: int = 0, devices: int = 1,
    precision: Precision = "32-true", seed: int = 0, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune a pre-trained folder on labelled images and measure it; continues where it was stopped.

    Args:
        model: folder of a pre-trained network (of distil, import, or RUN/pretrained).
        data: folder with a folder per class (and train, test or val above them), or the name of a data set.
        out: folder of the classifier, its checkpoints and its log of epochs.
        root: folder of a named data set.
        image_size: side of the images; the network's where not given; else its positions are resized.
        validation: images taken from the training split.
        labels: number of training images that are used, the first ones; all where not given.
        heads: as-pretrained keeps each block's; uniform gives all blocks those of the first, as published.
        epochs: passes over the labelled images.
        batch_size: images of a step, over all processes.
        learning_rate: of the head; 5e-4 times batch size over 256 where not given.
        layer_decay: factor of the learning rate from one layer to the one below.
        drop_path: of the last block, rising linearly.
        crop_scale: smallest share of an image's area that a crop takes.
        flip: mirror half of the images.
        randaugment: timm's policy for image files, such as rand-m9-mstd0.5-inc1.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none.
        smoothing: of the labels.
        erase: probability of a random rectangle of noise.
        workers: processes that decode image files.
        devices: number of devices.
        precision: Lightning's precision, such as bf16-mixed.
        seed: of head, order and augmentation.
        quiet: no progress on the console.
    """
    arguments = {name: value for name, value in locals().items() if name not in WHERE}
    manifest, pretrained = load_manifest(model), load_model_folder(model)
    sizes = manifest.arguments
    if sizes.get("num_classes"):
        raise UserError(f"{model} is fine-tuned already; name a pre-trained network")
    folder = settle(out, arguments)
    size = image_size or sizes["image_size"]
    named = data in NAMED
    splits = load_images(
        data if named else "folder", root=root if named else data, validation=validation, image_size=size,
        workers=workers, limit=labels,
    )  # fmt: skip
    if splits.image_shape != (sizes["channels"], size, size):
        raise UserError(
            f"the network takes images {(sizes['channels'], size, size)}, those of {data} are {splits.image_shape}"
        )
    splits = splits.prepared(mean=tuple(manifest.extra["mean"]), std=tuple(manifest.extra["std"]))
    counts = heads_per_block(pretrained)
    used = [counts[0]] * len(counts) if heads == "uniform" else counts
    torch.manual_seed(seed)
    new_sizes = sizes | {"image_size": size, "num_classes": len(splits.classes), "heads": used}
    classifier = build_vit(manifest.builder, **new_sizes)
    load_backbone(classifier, pretrained.state_dict())
    moved = largest_difference(pretrained, classifier, splits.example(1)) if size == sizes["image_size"] else None
    options = TrainerOptions(devices=devices, precision=precision)
    lines = Lines(quiet)
    batch_size = min(batch_size, len(splits.train))
    labelled = finetuning_batches(
        splits, batch_size, seed=seed, crop_scale=(crop_scale, 1.0), flip=flip, randaugment=randaugment
    )
    with begun(folder, arguments):
        train_classifier(
            classifier, labelled, epochs=epochs,
            learning_rate=5e-4 * batch_size / 256 if learning_rate is None else learning_rate,
            folder=folder / "training", layer_decay=layer_decay, warmup_epochs=5.0 * epochs / 100, drop_path=drop_path,
            mixup=mixup, cutmix=cutmix, smoothing=smoothing, erase=erase, trainer=options,
            on_epoch=lambda epoch, row: lines.progress("finetune", epoch, epochs, f"loss {row['train/loss']:.3f}"),
        )  # fmt: skip
    answer: dict[str, Any] = {"model": str(folder), "heads": used, "head_reset": moved}
    for part, batches in (("validation", splits.validation_batches()), ("test", splits.test_batches())):
        answer[part] = accuracies(*collect(classifier, classifier, batches, options.device))
    if rank() == 0:
        save_model(
            folder, classifier.cpu(), system="relation-distillation", builder=manifest.builder, arguments=new_sizes,
            extra=manifest.extra | {"classes": list(splits.classes), "accuracy": answer["test"]},
        )  # fmt: skip
    return answer
