"""Semantic segmentation with a pre-trained ViT (spec 2.11): UPerNet on four scales, exact mIoU at original size."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.data import FileBatches
from tenfold.errors import UserError, require
from tenfold.export import load_manifest
from tenfold.run import write_atomically
from tenfold.systems.relation_distillation.ade20k import (
    CLASSES,
    IGNORED,
    SegmentationFiles,
    TrainingCrop,
    find_ade20k,
    resized_size,
    sliding_logits,
)
from tenfold.systems.relation_distillation.alignment import heads_per_block
from tenfold.systems.relation_distillation.metrics import SegmentationScore
from tenfold.systems.relation_distillation.model import load_backbone, set_drop_path, vision_transformer
from tenfold.systems.relation_distillation.networks import load_model_folder
from tenfold.systems.relation_distillation.optimizers import adamw, layer_number
from tenfold.training import FitResult, TrainerOptions, fit


class SegmentationNetwork(nn.Module):
    """A ViT with relative positions and layer scale in every block, a pyramid of four scales, UPerNet, auxiliary head.

    Tables of relative positions begin at zero and layer scales at one, so that the network begins as the pre-trained
    one computes (the zero is reconstructed).

    Args:
        backbone: pre-training ViT of ours; its weights and head counts are taken over.
        classes: number of classes.
        crop: side of the images in pixels, a multiple of the patch.
        channels: of the decoder; 768 as published.
        auxiliary_channels: of the auxiliary head; 256 as published.
        layer_scale: initial value.
    """

    def __init__(
        self, backbone: Any, *, classes: int = CLASSES, crop: int = 512, channels: int = 768,
        auxiliary_channels: int = 256, layer_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        upernet = require("transformers.models.upernet.modeling_upernet", "transformers")
        settings = require("transformers", "transformers").UperNetConfig(
            pool_scales=[1, 2, 3, 6], hidden_size=channels, auxiliary_channels=auxiliary_channels,
            auxiliary_num_convs=1, auxiliary_in_channels=None, auxiliary_concat_input=False, num_labels=classes,
        )  # fmt: skip
        width, patch = backbone.embed_dim, backbone.patch_embed.patch_size[0]
        if crop % patch:
            raise UserError(f"the crop of {crop} pixels is not a multiple of the patch of {patch}")
        self.classes, self.crop = classes, crop
        self.backbone = vision_transformer(
            image_size=crop, patch=patch, width=width, depth=len(backbone.blocks), heads=heads_per_block(backbone),
            channels=backbone.patch_embed.proj.in_channels, prefix_tokens=backbone.num_prefix_tokens,
        )  # fmt: skip
        load_backbone(self.backbone, backbone.state_dict())
        _add_relative_positions(self.backbone, layer_scale)
        self.backbone.norm = nn.Identity()
        depth = len(backbone.blocks)
        # 4, 6, 8 and 12 of 12.
        self.taken = [max(1, round(depth * share)) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
        self.neck = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, 2),
                ),
                nn.ConvTranspose2d(width, width, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )  # fmt: skip
        self.decoder = upernet.UperNetHead(settings, [width] * 4)
        self.decoder.classifier = nn.Sequential(nn.Dropout2d(0.1), self.decoder.classifier)
        self.auxiliary = upernet.UperNetFCNHead(settings, [width] * 4)

    def scales(self, images: Tensor) -> list[Tensor]:
        """Features at 4, 2, 1 and half times the patch grid, ``(batch, width, height, width)`` each."""
        kept: list[Tensor] = []
        x = self.backbone.patch_embed(images)
        x = self.backbone._pos_embed(x)
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            kept += [x] * self.taken.count(number)
        rows = columns = math.isqrt(x.shape[1] - self.backbone.num_prefix_tokens)
        maps = [t[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns)) for t in kept]
        return [scale(one) for scale, one in zip(self.neck, maps, strict=True)]

    def forward(self, images: Tensor) -> Any:
        """Logits ``(batch, classes, crop, crop)``; in training also those of the auxiliary head."""
        scales = self.scales(images)
        resize = partial(F.interpolate, size=images.shape[-2:], mode="bilinear", align_corners=False)
        logits = resize(self.decoder(scales))
        return (logits, resize(self.auxiliary(scales))) if self.training else logits


def _add_relative_positions(model: Any, layer_scale: float) -> None:
    """Give each block's attention a table of relative positions of its own, and both branches a layer scale."""
    relpos = require("timm.models.vision_transformer_relpos", "timm")
    layers = require("timm.layers", "timm")

    class RelativeAttention(relpos.RelPosAttention):  # type: ignore[name-defined]
        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            return super().forward(x)

    for block in model.blocks:
        old = block.attn
        bias = partial(
            layers.RelPosBias, window_size=model.patch_embed.grid_size, prefix_tokens=model.num_prefix_tokens
        )
        new = RelativeAttention(model.embed_dim, old.num_heads, qkv_bias=True, rel_pos_cls=bias)
        new.load_state_dict(old.state_dict(), strict=False)
        nn.init.zeros_(new.rel_pos.relative_position_bias_table)
        block.attn = new
        block.ls1, block.ls2 = (layers.LayerScale(model.embed_dim, init_values=layer_scale) for _ in range(2))


def segmentation_groups(
    model: SegmentationNetwork, learning_rate: float, weight_decay: float, layer_decay: float
) -> Any:
    """Optimizer groups: the backbone's layers by their depth, neck and heads at the full rate."""
    depth = len(model.backbone.blocks)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("backbone.")
        layer = layer_number(inner, depth) if inner != name else depth + 1
        plain = parameter.ndim <= 1 or inner in ("pos_embed", "cls_token", "reg_token") or "relative_position" in name
        key = (layer_decay ** (depth + 1 - layer), 0.0 if plain else weight_decay)
        group = groups.setdefault(
            key, {"params": [], "names": [], "lr": learning_rate * key[0], "weight_decay": key[1]}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def train_segmentation(
    model: SegmentationNetwork, files: SegmentationFiles, *, folder: str | Path, mean: Sequence[float],
    std: Sequence[float], iterations: int = 160_000, batch_size: int = 16, learning_rate: float = 1e-4,
    weight_decay: float = 0.05, layer_decay: float = 0.75, drop_path: float = 0.1, warmup: int = 1500, seed: int = 0,
    workers: int = 0, trainer: TrainerOptions | None = None,
) -> FitResult:  # fmt: skip
    """Fine-tune in place: cross-entropy, 0.4 of the auxiliary head's, AdamW with layer-wise decay, linear decay to 0.

    Args:
        model: the network.
        files: training pairs.
        folder: where checkpoints go; a training resumes from there.
        mean: per channel.
        std: per channel.
        iterations: optimizer steps, rounded up to whole epochs.
        batch_size: images of a step, over all processes.
        learning_rate: of neck and heads.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below; 0.8 for TinyMIM*.
        drop_path: of the last block, rising linearly.
        warmup: steps of linear warm-up from a millionth.
        seed: of order and crops.
        workers: processes that read images.
        trainer: where it runs.
    """
    set_drop_path(model.backbone, drop_path, "linear")
    model.train()
    batches = FileBatches(
        files, batch_size, seed=seed, transform=TrainingCrop(model.crop, mean),  # type: ignore[arg-type]
        # Labels travel as a fourth channel: this normalizes them to themselves.
        mean=(*mean, 0.0), std=(*std, 1 / 255), workers=workers,
    )  # fmt: skip
    epochs = -(-iterations // len(batches))
    total = epochs * len(batches)
    warmup = min(warmup, total // 2)

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch[0][:, :3], batch[0][:, 3].round().long()
        logits, auxiliary = model(images)
        losses = [_cross_entropy(x, labels) for x in (logits, auxiliary)]
        return losses[0] + 0.4 * losses[1], {"decoder": losses[0], "auxiliary": losses[1]}

    def schedule(step: int) -> float:
        decay = 1 - step / total
        return decay if step >= warmup else decay * (1e-6 + (1 - 1e-6) * step / warmup)

    groups = segmentation_groups(model, learning_rate, weight_decay, layer_decay)
    return fit(
        model, objective, batches, epochs=epochs, optimizer=adamw(groups, (0.9, 0.999), trainer), schedule=schedule,
        folder=folder, options=trainer,
    )  # fmt: skip


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over labelled pixels; 0, with a gradient of 0, where a crop has none."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def evaluate_segmentation(
    model: SegmentationNetwork, files: SegmentationFiles, *, mean: Sequence[float], std: Sequence[float],
    stride: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """MIoU and pixel accuracy in percent, at the images' original size.

    Args:
        model: the network.
        files: test pairs.
        mean: per channel.
        std: per channel.
        stride: distance of the sliding windows; two thirds of the crop (341 of 512) where ``None``.
    """
    from torchvision.transforms.v2 import functional

    model.eval()
    device = next(model.parameters()).device
    stride = stride or max(1, 2 * model.crop // 3)
    score = SegmentationScore(model.classes, IGNORED)
    for number in range(len(files)):
        (image, labels), _ = files[number]
        size = resized_size(labels.shape[0], labels.shape[1], 4 * model.crop, model.crop)
        resized = functional.resize(functional.pil_to_tensor(image), list(size), antialias=True)
        pixels = functional.normalize(resized.float() / 255, list(mean), list(std)).to(device)
        logits = sliding_logits(model, pixels, model.crop, stride, model.classes)
        whole = F.interpolate(logits[None], labels.shape, mode="bilinear", align_corners=False)[0]
        score.update(whole.argmax(0).cpu(), torch.from_numpy(labels))
    return score.compute()


def segment(
    run: str, root: str, *, out: str | None = None, iterations: int = 160_000, batch_size: int = 16, crop: int = 512,
    channels: int = 768, learning_rate: float = 1e-4, layer_decay: float = 0.75, drop_path: float = 0.1,
    workers: int = 0, devices: int = 1, precision: str = "32-true", seed: int = 0,
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
