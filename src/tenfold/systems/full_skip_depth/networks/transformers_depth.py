"""Depth models of transformers (DPT, Depth Anything, ZoeDepth, GLPN) from a local folder, as one more network."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError, require


class TransformersDepth(nn.Module):
    """A depth-estimation model of transformers: images in [0, 1] to depth, so that the same scorer measures it.

    Args:
        folder: with ``config.json``, weights as safetensors and, where the model has one, ``preprocessor_config.json``.
            Nothing is fetched and no code in it runs.
        inverse: whether the model gives inverse depth up to scale and shift (DPT, Depth Anything's relative models);
            where ``None``, the model's config decides: one that says ``metric`` gives metres, any other inverse depth.

    Raises:
        UserError: transformers is missing, or the folder holds no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: str | Path, *, inverse: bool | None = None) -> None:
        super().__init__()
        transformers = require("transformers", "transformers")
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no transformers model (config.json)")
        try:
            self.body = transformers.AutoModelForDepthEstimation.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except Exception as error:  # a damaged folder can end the reader anywhere
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"transformers cannot read a depth model from {folder}: {reason}") from error
        config = self.body.config
        metric = getattr(config, "depth_estimation_type", None) == "metric" or config.model_type in ("zoedepth", "glpn")
        self.inverse = (not metric) if inverse is None else inverse
        backbone = getattr(config, "backbone_config", None)
        side: Any = getattr(config, "image_size", None) or getattr(backbone, "image_size", None) or 384
        self.side = int(side if isinstance(side, int) else max(side))
        self.patch = int(getattr(backbone, "patch_size", None) or getattr(config, "patch_size", None) or 32)
        mean, std = _normalization_of(folder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` RGB in [0, 1] to depth ``(batch, 1, height, width)``; where the model gives
        inverse depth, its reciprocal, whose scale (and, strictly, shift) is arbitrary: align it to score it.
        """
        height, width = images.shape[-2:]
        scale = self.side / min(height, width)
        size = [max(self.patch, round(x * scale / self.patch) * self.patch) for x in (height, width)]
        if self.body.config.model_type == "dpt":
            size = [self.side, self.side]  # its positions are of one square size
        x = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        answer = self.body(pixel_values=(x - self.mean) / self.std).predicted_depth
        answer = F.interpolate(answer[:, None], size=(height, width), mode="bilinear", align_corners=True)
        return 1 / answer.clamp(min=1e-3 * answer.amax().clamp(min=1e-6)) if self.inverse else answer


def _normalization_of(folder: Path) -> tuple[list[float], list[float]]:
    from tenfold.files import read_json

    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    mean, std = values.get("image_mean", [0.485, 0.456, 0.406]), values.get("image_std", [0.229, 0.224, 0.225])
    if len(mean) != 3 or len(std) != 3 or not all(isinstance(x, int | float) and x > 0 for x in std):
        raise UserError(f"{path}: image_mean and image_std must be three numbers each")
    return list(mean), list(std)
