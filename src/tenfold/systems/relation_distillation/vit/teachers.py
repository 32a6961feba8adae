"""Networks that teach: frozen, with the statistics that they were trained with."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from tenfold.errors import UserError, require


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


def load_transformers(folder: str | None) -> Any:
    """A transformers network from a local folder; nothing is fetched.

    Raises:
        UserError: transformers is missing, or the folder holds no model.
    """
    transformers = require("transformers", "transformers")
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"teacher.weights must be a folder with a transformers model; got {folder!r}")
    try:
        return transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no transformers model: {' '.join(str(error).split())[:200]}") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
