"""Official MAE and TinyMIM files, transformers' ViTs, and our own: read without executing anything, converted exactly.

The official files have timm's names. Head counts are in none of them: they are part of the published settings, and a
TinyMIM student's last block has others than the rest.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint, read_torch_file
from tenfold.systems.relation_distillation.vit.masked_autoencoder import MAEDecoder
from tenfold.systems.relation_distillation.vit.tinymim_star import TinyMIMStar
from tenfold.systems.relation_distillation.vit.vision_transformer import resize_positions, vision_transformer

Kind = Literal["mae", "tinymim-pretrained", "tinymim-finetuned", "tinymim-star"]

_DECODER = ("decoder_", "mask_token")
# Heads of all blocks but the last, and of the last, by width.
_HEADS: dict[str, dict[int, tuple[int, int]]] = {
    "mae": {768: (12, 12), 1024: (16, 16), 1280: (16, 16)},
    "tinymim-pretrained": {192: (6, 12), 384: (6, 12), 768: (12, 16)},
    "tinymim-finetuned": {192: (3, 3), 384: (6, 6), 768: (12, 12)},
    "tinymim-star": {192: (12, 12)},
}


@dataclass(frozen=True)
class OfficialFile:
    """What an official file holds.

    Attributes:
        encoder: weights of the ViT, by timm's names.
        decoder: weights of a masked autoencoder's decoder, where there are any.
        kind: see `Kind`.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    kind: Kind

    @property
    def architecture(self) -> dict[str, int]:
        """``image_size``, ``patch``, ``width``, ``depth``, ``channels``, ``num_classes``, ``prefix_tokens``."""
        width, channels, patch, _ = self.encoder["patch_embed.proj.weight"].shape
        depth = len({found[1] for name in self.encoder if (found := re.match(r"blocks\.(\d+)\.", name))})
        prefix = 2 if "dist_token" in self.encoder else 1
        side = round((self.encoder["pos_embed"].shape[1] - prefix) ** 0.5)
        head = self.encoder.get("head.weight")
        return {
            "image_size": side * patch,
            "patch": patch,
            "width": width,
            "depth": depth,
            "channels": channels,
            "num_classes": 0 if head is None else len(head),
            "prefix_tokens": prefix,
        }

    def heads(self, given: Sequence[int] | None = None) -> list[int]:
        """Heads of each block: those given, one for all or one per block, else the published ones.

        Raises:
            UserError: none are given for a width that was not published, or their number is neither 1 nor the depth.
        """
        depth, width = self.architecture["depth"], self.architecture["width"]
        if given:
            heads = list(given) * depth if len(given) == 1 else list(given)
            if len(heads) != depth:
                raise UserError(f"the checkpoint has {depth} blocks; got heads for {len(heads)}")
            return heads
        if width not in _HEADS[self.kind]:
            raise UserError(
                f"no {self.kind} network of width {width} was published, and a file does not tell its heads: name its "
                "heads (--teacher_heads of distil, --heads of import), or give it as the weights of timm/NAME"
            )
        most, last = _HEADS[self.kind][width]
        return [most] * (depth - 1) + [last]


def read_official(path: str | Path, kind: Kind | None = None) -> OfficialFile:
    """Read an official file, or a state dict with the same names.

    Training checkpoints hold an ``argparse.Namespace``; that class alone is allowed beside tensors and plain values.

    Args:
        path: torch file or safetensors.
        kind: what it is; told by its keys, by the settings in it and by its name where ``None``.

    Raises:
        UserError: it is missing, damaged, wants other objects, or holds no vision transformer of this layout.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content: Any = read_checkpoint(path)
    else:
        content = read_torch_file(path, allow=[argparse.Namespace])
    settings = content.get("args") if isinstance(content, dict) else None
    for name in ("model", "state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"):
        if name not in state:
            raise UserError(f"{path} is no checkpoint of MAE, TinyMIM or a timm vision transformer: it lacks {name!r}")
    if state["patch_embed.proj.weight"].ndim != 4 or state["pos_embed"].ndim != 3:
        raise UserError(f"{path} is of another architecture: its patch embedding or positions have another shape")
    blocks = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d{1,6})\.", name))}
    if blocks != set(range(len(blocks))):  # before anything of that depth is built
        raise UserError(f"{path} is damaged: its blocks are not numbered from 0 without a gap")
    decoder = {name: value for name, value in state.items() if name.startswith(_DECODER)}
    encoder = {name: value for name, value in state.items() if name not in decoder}
    return OfficialFile(encoder, decoder, kind or _kind_of(encoder, path, settings))


def _kind_of(encoder: Mapping[str, Tensor], path: Path, settings: Any) -> Kind:
    if "conv1x1.1.weight" in encoder:
        return "tinymim-star"
    if "head.weight" in encoder:
        return "tinymim-finetuned"
    from_tinymim = "tinymim" in path.name.lower() or "tinymim" in str(getattr(settings, "model", "")).lower()
    return "tinymim-pretrained" if from_tinymim else "mae"


def load_official(path: str | Path, *, kind: Kind | None = None, heads: Sequence[int] | None = None) -> Any:
    """The network of an official file, in eval mode.

    Args:
        path: see `read_official`.
        kind: see there.
        heads: one number, or one per block; the published ones where ``None``.

    Returns:
        A pre-training ViT (its output is all tokens), a classifier, or for TinyMIM* a
        `TinyMIMStar`.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    file = read_official(path, kind)
    sizes = file.architecture
    if file.kind == "tinymim-star":
        prefix = sizes.pop("prefix_tokens")
        if prefix != 2:
            raise UserError(f"{path} lacks the distillation token of TinyMIM*")
        star = TinyMIMStar(**sizes, heads=file.heads(heads)[0], bottleneck=len(file.encoder["conv1x1.1.weight"]))
        load_strictly(star, file.encoder, path)
        return star.eval()
    model = vision_transformer(**sizes, heads=file.heads(heads))
    load_strictly(model, file.encoder, path)
    return model.eval()


def load_decoder(path: str | Path, encoder: Any, heads: int = 16) -> MAEDecoder:
    """The decoder of a full MAE checkpoint (``mae_visualize_...``), for its encoder.

    Args:
        path: the file.
        encoder: the network of `load_official`.
        heads: of the decoder's blocks.

    Raises:
        UserError: the file holds no decoder, or another encoder's.
    """
    state = read_official(path).decoder
    if "decoder_embed.weight" not in state:
        raise UserError(f"{path} holds no decoder; the files mae_visualize_... do")
    depth = len({name.split(".")[1] for name in state if name.startswith("decoder_blocks.")})
    decoder = MAEDecoder(encoder, width=len(state["decoder_embed.weight"]), depth=depth, heads=heads)
    load_strictly(decoder, state, path)
    return decoder.eval()


def load_teacher_weights(network: Any, path: str) -> None:
    """Load a backbone into a network that was built for it; heads and decoders in the file are left out.

    Args:
        network: timm vision transformer for pre-training.
        path: an official file, a state dict with the same names, or a model folder of this system.

    Raises:
        UserError: the file is missing or damaged, or of another architecture.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "model.safetensors"
    state = read_official(file).encoder
    own = network.state_dict()
    if (
        state["pos_embed"].shape[-1] == own["pos_embed"].shape[-1]
        and state["pos_embed"].shape != own["pos_embed"].shape
    ):
        state["pos_embed"] = resize_positions(
            state["pos_embed"], network.patch_embed.grid_size, network.num_prefix_tokens
        )
    state = {name: value for name, value in state.items() if name in own or name.startswith("blocks.")}
    # Fine-tuned files have a norm after the mean over patches instead of the final one, which relations never reach.
    for name in ("norm.weight", "norm.bias"):
        if name in own:
            state.setdefault(name, own[name])
    load_strictly(network, state, path)


# --- transformers ---------------------------------------------------------------------------------------------------
