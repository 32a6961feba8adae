"""Checkpoints of the official ViLT and DiDE programs: their names, and ours.

A fusion encoder has ViLT's own names but for the task's head, which is called ``classifier``. A trained DiDE checkpoint
holds three whole ViLT copies, of which each tower keeps what it uses.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import FusionEncoder
from tenfold.systems.dual_encoder.training.initialise import image_tower_state, text_tower_state

HEADS = ("vqa_classifier.", "nlvr2_classifier.", "ve_classifier.")
_KEPT = ("text_embeddings.", "token_type_embeddings.", "transformer.", "pooler.")
_BUFFER = "text_embeddings.position_ids"
_MODALITY = "token_type_embeddings.weight"


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The state dict of an official checkpoint; nothing in it is executed.

    Args:
        path: of the file.

    Raises:
        UserError: it is missing, damaged, or wants to build other objects than tensors and plain values.
    """
    return unwrap_state(_tensors_only(read_checkpoint(path)), path)


def _tensors_only(checkpoint: dict[str, Any]) -> Any:
    """Lightning's checkpoints hold plain values beside the state dict, which lies under its usual name."""
    return checkpoint["state_dict"] if isinstance(checkpoint.get("state_dict"), Mapping) else checkpoint


def is_dide(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of DiDE: it has two encoders."""
    return any(name.startswith("image_encoder.") for name in state)


def sizes_of_state(state: Mapping[str, Tensor], heads: int | None = None, norm_eps: float = 1e-6) -> Sizes:
    """Sizes of an encoder from its tensors, in ViLT's names.

    Args:
        state: of one encoder.
        heads: attention heads, of which no tensor tells; one per 64 of the width where ``None``.
        norm_eps: see ``Sizes``.

    Raises:
        UserError: a tensor is missing: it is no checkpoint of ViLT's form.
    """
    try:
        words = state["text_embeddings.word_embeddings.weight"]
        patches = state["transformer.patch_embed.proj.weight"]
        return Sizes(
            vocabulary=words.shape[0],
            width=words.shape[1],
            layers=sum(name.endswith(".attn.qkv.weight") for name in state),
            heads=heads or max(1, words.shape[1] // 64),
            patch=patches.shape[-1],
            grid=round((state["transformer.pos_embed"].shape[1] - 1) ** 0.5),
            max_tokens=state["text_embeddings.position_embeddings.weight"].shape[0],
            images=state[_MODALITY].shape[0] - 1,
            norm_eps=norm_eps,
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"the file is no checkpoint of ViLT's form: it lacks {printable(error)}") from error


def head_of_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The task's head under the name ``classifier``; empty where there is none.

    Raises:
        UserError: there are heads of several tasks.
    """
    found = [head for head in (*HEADS, "classifier.") if any(name.startswith(head) for name in state)]
    if len(found) > 1:
        raise UserError(f"the checkpoint holds heads of several tasks ({', '.join(found)}): save one of them")
    return {
        "classifier." + name.removeprefix(found[0]): value
        for name, value in state.items()
        if found and name.startswith(found[0])
    }


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a fusion encoder without its head, and without heads of pre-training (matching, masked words)."""
    return {name: value.float() for name, value in state.items() if name.startswith(_KEPT) and name != _BUFFER}


def fusion_from_official(state: Mapping[str, Tensor], heads: int | None = None, source: str = "it") -> FusionEncoder:
    """A fusion encoder from an official ViLT state dict with a task's head, in eval mode.

    Args:
        state: see ``read_official``.
        heads: see ``sizes_of_state``.
        source: the file, for messages.

    Raises:
        UserError: it is no such checkpoint, or has no head of a task.
    """
    head = head_of_state(state)
    if not head:
        raise UserError(f"{source} holds no head of a task ({', '.join(HEADS)}): fine-tune it first, or start from it")
    model = FusionEncoder(sizes_of_state(state, heads), head["classifier.3.weight"].shape[0])
    load_strictly(model, encoder_state(state) | head, source)
    return model.eval()


def dual_from_official(state: Mapping[str, Tensor], heads: int | None = None, source: str = "it") -> DualEncoder:
    """A dual encoder from a trained DiDE state dict, in eval mode; its teacher, if it is in there, stays out.

    Args:
        state: see ``read_official``.
        heads: see ``sizes_of_state``.
        source: the file, for messages.

    Raises:
        UserError: it is no such checkpoint.
    """
    encoders = {
        tower: encoder_state({n.removeprefix(f"{tower}."): v for n, v in state.items() if n.startswith(f"{tower}.")})
        for tower in ("text_encoder", "image_encoder")
    }
    rest = {name: value for name, value in state.items() if name.startswith(("fusion.", *HEADS, "classifier."))}
    head = head_of_state(rest)
    if not head or not any(name.startswith("fusion.") for name in rest):
        raise UserError(f"{source} holds no trained dual encoder: its fusion or its task's head is missing")
    sizes = sizes_of_state(encoders["image_encoder"], heads)
    model = DualEncoder.from_sizes(sizes, head["classifier.3.weight"].shape[0])
    load_strictly(model.text_tower, text_tower_state(encoders["text_encoder"]), source)
    load_strictly(model.image_tower, image_tower_state(encoders["image_encoder"], sizes.images), source)
    fusion = {n.removeprefix("fusion."): v.float() for n, v in rest.items() if n.startswith("fusion.")}
    load_strictly(model.fusion, fusion, source)
    load_strictly(model.classifier, {n.removeprefix("classifier."): v.float() for n, v in head.items()}, source)
    return model.eval()


def to_official(model: FusionEncoder | DualEncoder, head: str) -> dict[str, Tensor]:
    """The state dict of a model in the official program's names.

    Of a dual encoder each encoder is whole again, as that program expects; parts that its tower has not are zero.

    Args:
        model: in ViLT's form.
        head: ``vqa_classifier``, ``nlvr2_classifier`` or ``ve_classifier``.
    """
    if f"{head}." not in HEADS:
        raise UserError(f"the official heads are {', '.join(name[:-1] for name in HEADS)}; got {head!r}")
    renamed = {
        name.replace("classifier.", f"{head}.", 1) if name.startswith("classifier.") else name: value.detach().clone()
        for name, value in model.state_dict().items()
    }
    if isinstance(model, FusionEncoder):
        return renamed
    sizes: Sizes = model.image_tower.sizes
    blank = {n: torch.zeros_like(v) for n, v in FusionEncoder(sizes, 1).state_dict().items() if n.startswith(_KEPT)}
    found = {name: value for name, value in renamed.items() if name.startswith(("fusion.", f"{head}."))}
    for tower, encoder in (("text_tower", "text_encoder"), ("image_tower", "image_encoder")):
        whole = dict(blank)
        for name, value in renamed.items():
            inner = name.removeprefix(f"{tower}.")
            if inner == name:
                continue
            if inner == "modality":
                table = blank[_MODALITY].clone()
                first = 0 if tower == "text_tower" else 1
                table[first : first + len(value.reshape(-1, sizes.width))] = value
                whole[_MODALITY] = table
            else:
                whole[inner] = value
        found |= {f"{encoder}.{name}": value for name, value in whole.items()}
    return found
