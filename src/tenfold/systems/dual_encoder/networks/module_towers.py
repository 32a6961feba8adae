"""Towers made of any module: halves of transformers' models, or the reader's own."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.files import first_line, printable
from tenfold.models.folder import plain_arguments

Pool = Literal["first", "mean", "pooler"]
"""A tower's vector: of the first token, the mean over real tokens, or what the module itself pools."""
_LARGEST_DESCRIPTION = 100_000
_LEFT_OUT = re.compile(r"^_|auto_map|architectures|version|model_type|dtype|cache|attn_implementation|2id|2label")


class ModuleTextTower(nn.Module):
    """A text encoder as a tower.

    Args:
        module: called with ``input_ids`` and ``attention_mask``; gives ``last_hidden_state`` ``(batch, n, width)``, or
            that tensor itself.
        width: of its vectors.
        pool: see ``Pool``.
    """

    description: dict[str, Any] | None = None

    def __init__(self, module: nn.Module, width: int, pool: Pool = "first") -> None:
        super().__init__()
        self.module, self.width, self.pool = module, width, pool

    def forward(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(batch, n)`` token numbers, and booleans that are true for words, to ``(batch, width)``."""
        mask = torch.ones_like(text) if text_mask is None else text_mask.long()
        return pooled(self.module(input_ids=text, attention_mask=mask), self.pool, mask)


class ModuleImageTower(nn.Module):
    """An image encoder as a tower; its images are brought to its own patches, so that its grid is the teacher's.

    Args:
        module: called with ``pixel_values``; gives ``last_hidden_state`` ``(batch, tokens, width)``, or that tensor.
        width: of its vectors.
        patch: side of its patches in pixels.
        input_patch: side of the patches of the images that come in; the tower's own where ``None``.
        pool: see ``Pool``.
        prefix: leading tokens that are no patches.
    """

    description: dict[str, Any] | None = None

    def __init__(
        self,
        module: nn.Module,
        width: int,
        patch: int,
        *,
        input_patch: int | None = None,
        pool: Pool = "first",
        prefix: int = 1,
    ) -> None:
        super().__init__()
        self.module, self.width, self.patch, self.pool, self.prefix = module, width, patch, pool, prefix
        self.input_patch = input_patch or patch
        self._arguments = set(inspect.signature(module.forward).parameters)

    def forward(self, pixels: Tensor, patch_mask: Tensor | None = None, side: Tensor | int = 0) -> Tensor:
        """Vectors of images, whichever side of a pair they are.

        Args:
            pixels: ``(batch, 3, height, width)`` normalized.
            patch_mask: must be ``None``: such encoders know no padding; prepare images with ``square=True``.
            side: not used: the head keeps the images of a pair apart.

        Raises:
            UserError: the images are padded.
        """
        if patch_mask is not None:
            raise UserError("this image tower knows no padding: prepare images to one size with square=True")
        if self.input_patch != self.patch:
            size = [side // self.input_patch * self.patch for side in pixels.shape[-2:]]
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        given: dict[str, Any] = {"pixel_values": pixels}
        if "interpolate_pos_encoding" in self._arguments:
            given["interpolate_pos_encoding"] = True
        return pooled(self.module(**given), self.pool, None)


def pooled(output: Any, pool: Pool, mask: Tensor | None) -> Tensor:
    """One vector ``(batch, width)`` of an encoder's output.

    Args:
        output: a tensor ``(batch, tokens, width)``, or what has it as ``last_hidden_state``.
        pool: see ``Pool``.
        mask: ``(batch, tokens)``, of real tokens.

    Raises:
        UserError: the output holds no such tensor.
    """
    if pool == "pooler":
        found = getattr(output, "pooler_output", None)
        if found is None:
            raise UserError("the module pools nothing itself: use pool='first' or 'mean'")
        return found
    hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise UserError("a tower's module must give hidden states (batch, tokens, width), or last_hidden_state")
    if pool == "first":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def transformers_towers(
    text: str | Path | Any, image: str | Path | Any, *, input_patch: int | None = None, pool: Pool = "first"
) -> tuple[ModuleTextTower, ModuleImageTower]:
    """Two towers from transformers' models: BERT and ViT or DeiT, or the two halves of one CLIP or SigLIP.

    Args:
        text: a local folder, or a model; of a model with two halves its text half is taken.
        image: likewise, its image half.
        input_patch: see ``ModuleImageTower``.
        pool: see ``Pool``.

    Raises:
        UserError: transformers is missing, a folder holds no model, or it has no such half.
    """
    made = []
    for given, what in ((text, "text"), (image, "image")):
        model = given if isinstance(given, nn.Module) else read_transformers(given)
        half, config = _half(model, what)
        made.append(_tower(half, config, what, pool, input_patch, _description(config, what, pool, input_patch)))
    return made[0], made[1]


def read_transformers(folder: str | Path) -> Any:
    """A model of transformers from a local folder; nothing is fetched, no code of the folder runs.

    Raises:
        UserError: transformers is missing, or the folder holds no model that it knows.
    """
    transformers = require("transformers", "transformers")
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{printable(folder)} is no folder of a transformers model (it has no config.json)")
    try:
        return transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except Exception as error:  # transformers ends in many ways on what it does not know
        raise UserError(f"transformers cannot load {printable(folder)}: {first_line(error)}") from error


def _half(model: Any, what: str) -> tuple[Any, Any]:
    half = getattr(model, {"text": "text_model", "image": "vision_model"}[what], None)
    if half is not None:
        return half, getattr(half, "config", None)
    return model, getattr(model, "config", None)


def _description(config: Any, what: str, pool: Pool, input_patch: int | None) -> dict[str, Any] | None:
    if config is None or not hasattr(config, "to_diff_dict"):
        return None
    values = {
        name: value
        for name, value in config.to_dict().items()
        if not _LEFT_OUT.search(name) and isinstance(value, int | float | str | bool | list | type(None))
    }
    return {"model_type": config.model_type, "config": values, "pool": pool, "input_patch": input_patch}


def tower_from_description(given: Mapping[str, Any], what: str) -> Any:
    """A tower with random weights from what a manifest says of it: a kind of transformers' and plain numbers.

    Args:
        given: ``model_type``, ``config``, ``pool`` and ``input_patch``.
        what: ``text`` or ``image``.

    Raises:
        UserError: transformers is missing, or the description is damaged or of no known kind.
    """
    transformers = require("transformers", "transformers")
    if len(json.dumps(given)) > _LARGEST_DESCRIPTION:
        raise UserError("the description of a tower is damaged: it is too long")
    values = plain_arguments(given["config"], "model.json")  # no address, no path: nothing can be fetched or opened
    kind = str(given["model_type"])
    try:
        config = transformers.AutoConfig.for_model(kind, **values)
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"transformers cannot build a tower {printable(kind)!r}: {first_line(error)}") from error
    half, half_config = _half(model, what)
    return _tower(half, half_config, what, given["pool"], given["input_patch"], dict(given))


def _tower(
    module: Any, config: Any, what: str, pool: Pool, input_patch: int | None, description: dict[str, Any] | None
) -> Any:
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise UserError(f"the {what} model does not say its width (config.hidden_size)")
    if pool != "pooler":
        _without_pooler(module)
    if what == "text":
        tower: Any = ModuleTextTower(module, width, pool)
    else:
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            raise UserError("the image model does not say the size of its patches (config.patch_size)")
        tower = ModuleImageTower(module, width, patch, input_patch=input_patch, pool=pool)
        tower.prefix = _prefix(tower, config)
    tower.description = description
    return tower


def _without_pooler(module: Any) -> None:
    """A pooler that nobody asks would be parameters without a gradient, at which training on several devices stops."""
    if isinstance(getattr(module, "pooler", None), nn.Module):
        module.pooler = None
    if isinstance(getattr(module, "head", None), nn.Module) and getattr(module, "use_head", False):
        module.use_head = False
        del module.head


@torch.no_grad()
def _prefix(tower: ModuleImageTower, config: Any) -> int:
    """How many tokens come before the patches, by running the encoder once."""
    size = getattr(config, "image_size", None) or 2 * tower.patch
    side = size if isinstance(size, int) else size[0]
    was = tower.module.training
    given = {"pixel_values": torch.zeros(1, getattr(config, "num_channels", 3), side, side)}
    output = tower.module.eval()(**given)
    tower.module.train(was)
    return output.last_hidden_state.shape[1] - (side // tower.patch) ** 2
