"""Networks that teach: frozen, with the statistics that they were trained with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

import tenfold
from tenfold.attention.layers import attention_layers
from tenfold.errors import UserError, require
from tenfold.files import printable, read_json
from tenfold.models.folder import load_manifest
from tenfold.systems.relation_distillation.vit.build import SYSTEM, build_vit, load_model_folder
from tenfold.systems.relation_distillation.vit.official_files import load_official, load_teacher_weights, read_official
from tenfold.systems.relation_distillation.vit.preprocessing import IMAGENET_STATISTICS, statistics_of
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer


@dataclass(frozen=True)
class Teacher:
    """A frozen network with the statistics it was trained with.

    Attributes:
        network: in eval mode.
        mean: per channel; ``None`` for the data's.
        std: likewise.
        fingerprint: SHA-256 of its weights.
        source: where it comes from, in words.
    """

    network: Any
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fingerprint: str
    source: str


def load_teacher(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    weights: str | None = None,
    heads: Sequence[int] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Teacher:
    """A teacher by what a user has of it.

    Args:
        name: a model folder, an official MAE or TinyMIM file, any file with timm's names of a ViT, a transformers
            folder, or ``timm/NAME``.
        image_size: side of the images, for ``timm/NAME``.
        channels: of the images.
        weights: file with the weights of ``timm/NAME``.
        heads: of a file that is none of the published ones: one number, or one per block.
        arguments: of ``timm/NAME``.

    Raises:
        UserError: there is no such teacher, or it does not fit the images.
    """
    path = Path(name)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean, std = IMAGENET_STATISTICS
    if not name.startswith("timm/") and (weights or arguments):
        raise UserError("weights and arguments of a teacher belong to timm/NAME; a file or folder has its own")
    if name.startswith("timm/"):
        if weights is None:
            raise UserError(f"nothing is fetched: name the file with the weights of {name} with --teacher_weights")
        network = build_vit(name, image_size=image_size, channels=channels, arguments=arguments)
        load_teacher_weights(network, weights)
        mean, std = (tuple(network.pretrained_cfg.get(key) or known) for key, known in (("mean", mean), ("std", std)))
    elif (path / "model.json").exists():
        manifest = load_manifest(path)
        ours = manifest.system == SYSTEM
        network = load_model_folder(path) if ours else _of_another_system(path)
        mean, std = statistics_of(manifest.extra)
    elif path.is_dir():
        network = load_transformers(name)
        processor = path / "preprocessor_config.json"
        if processor.exists():
            found = read_json(processor)
            if isinstance(found, dict) and found.get("image_mean"):
                mean, std = statistics_of({"mean": found["image_mean"], "std": found.get("image_std")})
    elif path.exists():
        network = _backbone_of(path, heads)
    else:
        raise UserError(f"there is no teacher {name!r}: name a model folder, an official file, or timm/NAME")
    if len(mean) != channels:
        raise UserError(f"the teacher takes {len(mean)} channels; the images have {channels}")
    return Teacher(network.eval(), mean, std, fingerprint(network), name)


def _of_another_system(folder: Path) -> nn.Module:
    network, _ = tenfold.load_network(folder)
    if not attention_layers(network):
        raise UserError(f"{printable(folder)} holds a network without attention layers: it has no relations to learn")
    return network


def _backbone_of(path: Path, heads: Sequence[int] | None) -> Any:
    """The ViT of a file without its head, which a teacher never reaches."""
    file = read_official(path)
    if file.kind == "tinymim-star":
        return load_official(path, heads=heads)
    network = vision_transformer(**file.architecture | {"num_classes": 0}, heads=file.heads(heads))
    load_teacher_weights(network, str(path))
    return network


def load_transformers(folder: str | None) -> Any:
    """A transformers network from a local folder; nothing is fetched, and no code of the folder runs.

    Raises:
        UserError: transformers is missing, or the folder holds no model.
    """
    transformers = require("transformers", "transformers")
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"teacher.weights must be a folder with a transformers model; got {folder!r}")
    try:
        return transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{folder} holds no transformers model: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # a damaged safetensors file ends in an error of its library
        raise UserError(f"{folder} holds a damaged model: {' '.join(str(error).split())[:200]}") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
