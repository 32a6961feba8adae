"""Where a student starts: each tower takes a whole ViLT-form checkpoint and keeps what it uses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder
from tenfold.systems.dual_encoder.networks.towers import ImageTower, TextTower

_MODALITY = "token_type_embeddings.weight"
_IMAGE_PARTS = ("transformer.cls_token", "transformer.pos_embed", "transformer.patch_embed.")


def text_tower_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a text tower takes of a ViLT-form state dict: embeddings, blocks, pooler, modality row 0."""
    kept = {
        name: value
        for name, value in state.items()
        if name.startswith(("text_embeddings.", "transformer.", "pooler.")) and not name.startswith(_IMAGE_PARTS)
    }
    return kept | {"modality": state[_MODALITY][0]}


def image_tower_state(state: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
    """What an image tower takes of a ViLT-form state dict: patches, blocks, pooler, modality row 1 (and 2 of pairs).

    A checkpoint of single images gives the second image of a pair a copy of the first's row.

    Args:
        state: the state dict.
        images: images per question.
    """
    kept = {name: value for name, value in state.items() if name.startswith(("transformer.", "pooler."))}
    rows = state[_MODALITY][1:]
    return kept | {"modality": rows[:images] if len(rows) >= images else rows[:1].repeat(images, 1)}


def start_from_fusion(student: DualEncoder, teacher: FusionEncoder | Mapping[str, Tensor], source: str = "it") -> None:
    """Start both towers from one fusion encoder, as the official program does; fusion and head stay random.

    Args:
        student: with towers of ViLT's form, of the same sizes.
        teacher: a fusion encoder or its state dict.
        source: where that comes from, for messages.

    Raises:
        UserError: a tower is of another form, or of other sizes.
    """
    if not isinstance(student.text_tower, TextTower) or not isinstance(student.image_tower, ImageTower):
        raise UserError("only towers of ViLT's form start from a fusion encoder; load others from weights of their own")
    state = teacher.state_dict() if isinstance(teacher, torch.nn.Module) else dict(teacher)
    state = {name: value.detach().clone() for name, value in state.items()}
    depth = len(student.text_tower.transformer.blocks)
    if f"transformer.blocks.{depth}.norm1.weight" in state:
        raise UserError(f"{source} has more blocks than the student's towers, {depth}: give the towers as many")
    load_strictly(student.text_tower, text_tower_state(state), source)
    load_strictly(student.image_tower, image_tower_state(state, student.images), source)
