"""Vision transformers between timm's layout, which is the official one, and transformers'."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.attention.heads import heads_per_block
from tenfold.errors import UserError, require
from tenfold.models.checkpoints import load_strictly
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer


def to_transformers(model: Any) -> Any:
    """A transformers ``ViTModel`` that computes the same as a pre-training ViT of ours; save it with its own method.

    Args:
        model: pre-training ViT of `vision_transformer`.

    Raises:
        UserError: the model has a head, registers, or blocks with different head counts: a transformers configuration
            has one number for all.
    """
    transformers = require("transformers", "transformers")
    heads = set(heads_per_block(model))
    if len(heads) != 1:
        raise UserError(
            f"a transformers ViT has one head count for all blocks; this one has {heads_per_block(model)}: give it "
            "uniform heads first, or export to timm"
        )
    if isinstance(model.head, nn.Linear) or model.num_prefix_tokens != 1:
        raise UserError("only a pre-training ViT with a class token alone has an equal among transformers' models")
    projection = model.patch_embed.proj
    config = transformers.ViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=heads.pop(),
        intermediate_size=model.blocks[0].mlp.fc1.out_features,
        image_size=model.patch_embed.img_size[0],
        patch_size=projection.kernel_size[0],
        num_channels=projection.in_channels,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    other = transformers.ViTModel(config, add_pooling_layer=False).eval()
    other.load_state_dict(_to_their_names(model.state_dict(), len(model.blocks)))
    return other


def from_transformers(other: Any) -> Any:
    """Our pre-training ViT with the weights of a transformers ``ViTModel`` or ``ViTMAEModel``, in eval mode.

    Args:
        other: the transformers model.

    Raises:
        UserError: it is another kind of model, or has projections without bias.
    """
    config: Any = getattr(other, "config", None)
    if getattr(config, "model_type", "") not in ("vit", "vit_mae"):
        raise UserError(f"{type(other).__name__} is no ViT or ViT-MAE of transformers")
    if not config.qkv_bias:
        raise UserError("projections without bias have no equal among the official networks")
    model = vision_transformer(
        image_size=config.image_size,
        patch=config.patch_size,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        channels=config.num_channels,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )
    for norm in (module for module in model.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = config.layer_norm_eps
    load_strictly(model, _to_our_names(other.state_dict(), config.num_hidden_layers), type(other).__name__)
    return model.eval()


_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


_INSIDE = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _to_their_names(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    theirs = {new: state[old] for old, new in _OUTSIDE.items()}
    for i in range(depth):
        for kind in ("weight", "bias"):
            for old, new in _INSIDE.items():
                theirs[f"layers.{i}.{new}.{kind}"] = state[f"blocks.{i}.{old}.{kind}"]
            for part, value in zip("qkv", state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                theirs[f"layers.{i}.attention.{part}_proj.{kind}"] = value
    return theirs


def _to_our_names(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    ours = {old: state[new] for old, new in _OUTSIDE.items()}
    for i in range(depth):
        for kind in ("weight", "bias"):
            for old, new in _INSIDE.items():
                ours[f"blocks.{i}.{old}.{kind}"] = state[f"layers.{i}.{new}.{kind}"]
            parts = [state[f"layers.{i}.attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return ours
