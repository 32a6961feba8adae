"""The targets that relations were measured against (TinyMIM, section 3.1 and tables 5 to 8): class token and features.


    class token    KL(softmax(c_t) || softmax(W c_s))                      after each network's final norm
    features       smooth-L1, beta 2, of W f_s against f_t whitened by a LayerNorm without weights

Both need a projection W of the student's width to the teacher's, which is thrown away afterwards.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.attention.layers import default_teacher_layer, resolve_layer
from tenfold.attention.recorders import Reached
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.training.freezing import freeze_unreached, leave_teacher_out

Target = Literal["cls", "output", "ffn", "ffn-residual", "attention", "attention-residual", "qkv"]
"""``cls``: the class token. ``output``: the last block's. Of the target block: ``ffn`` and ``attention`` branches
before and after the residual is added, and the ``qkv`` projections."""
TARGETS: tuple[str, ...] = get_args(Target)


def features(model: Any, target: Target, layer: int, images: Tensor) -> list[Tensor]:
    """The features of a timm vision transformer that a target names; the network runs no further.

    Args:
        model: the network.
        target: see `Target`.
        layer: block, from 1; the last where the target is ``cls`` or ``output``.
        images: ``(batch, channels, height, width)``.

    Returns:
        For ``qkv`` three tensors ``(batch, N, width)``, else one; for ``cls`` ``(batch, width)``.
    """
    block = model.blocks[layer - 1]
    seen: list[Tensor] = []

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)
        raise Reached

    def before(module: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0])
        raise Reached

    register: dict[str, Callable[[], Any]] = {
        "cls": lambda: model.norm.register_forward_hook(after),
        "output": lambda: model.blocks[-1].register_forward_hook(after),
        "ffn": lambda: block.mlp.register_forward_hook(after),
        "ffn-residual": lambda: block.register_forward_hook(after),
        "attention": lambda: block.attn.register_forward_hook(after),
        "attention-residual": lambda: block.norm2.register_forward_pre_hook(before),
        "qkv": lambda: block.attn.qkv.register_forward_hook(after),
    }
    handle = register[target]()
    try:
        with suppress(Reached):
            model(images)
    finally:
        handle.remove()
    if target == "cls":
        return [seen[0][:, 0]]
    return list(seen[0].chunk(3, -1)) if target == "qkv" else seen


class FeatureDistiller(nn.Module):
    """Trains a student towards a feature of a frozen teacher; used like
    `RelationDistiller`.

    The paper gives the class token's loss as a KL only and does not say how three projections are combined: the
    softmax over channels, the projection of the class token and the mean over queries, keys and values are
    reconstructed.

    Args:
        student: timm vision transformer; its last block learns.
        teacher: timm vision transformer of the same tokens; frozen.
        target: see `Target`.
        teacher_layer: block from 1, or -1 for the last; ``auto`` as for relations.
        autoencoder: masked autoencoder around the student whose loss is added (ablation).
        example: a batch, see `RelationDistiller`.

    Raises:
        UserError: a network is no timm vision transformer, or there is no such target or block.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        target: Target,
        *,
        teacher_layer: int | Literal["auto"] = "auto",
        autoencoder: nn.Module | None = None,
        example: Any = None,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise UserError(f"target must be one of {', '.join(TARGETS)}; got {target!r}")
        for model in (student, teacher):
            if not all(hasattr(model, name) for name in ("blocks", "patch_embed", "norm", "embed_dim")):
                raise UserError(
                    f"feature targets need timm vision transformers; {type(model).__name__} is none: use relations"
                )
        layers = len(teacher.blocks)
        self.teacher_layer = (
            default_teacher_layer(layers, len(student.blocks))
            if teacher_layer == "auto"
            else resolve_layer(teacher_layer, layers, "the teacher")
        )
        self.target: Target = target
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        self.projections = nn.ModuleList(
            nn.Linear(student.embed_dim, teacher.embed_dim) for _ in range(3 if target == "qkv" else 1)
        )
        self.autoencoder = autoencoder
        self.untrained: list[str] = []
        leave_teacher_out(self)
        self.train()
        if example is not None:
            self.untrained = freeze_unreached(student, self.loss(example)["loss"])

    def train(self, mode: bool = True) -> "FeatureDistiller":
        """Training mode for the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.train(False)
        return self

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """See `loss`."""
        return self.loss(batch)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """``loss`` of a batch of images, or of ``(student's images, teacher's images)``.

        In place of the teacher's images, what `of_teacher` made of them.
        """
        for_student, for_teacher = batch if isinstance(batch, tuple | list) else (batch, batch)
        ours = features(self.student, self.target, len(self.student.blocks), for_student)
        theirs = for_teacher if isinstance(for_teacher, list) else self.of_teacher(for_teacher)
        if ours[0].shape[:-1] != theirs[0].shape[:-1]:
            raise UserError(
                f"student and teacher give features of {ours[0].shape[1]} and {theirs[0].shape[1]} tokens; they must "
                "have the same patch grid"
            )
        losses = [
            self._distance(projection(own), other)
            for projection, own, other in zip(self.projections, ours, theirs, strict=True)
        ]
        found = {"loss": torch.stack(losses).mean()}
        if self.autoencoder is not None:
            reconstruction = self.autoencoder(for_student)["loss"]
            found = {"loss": found["loss"] + reconstruction, "reconstruction": reconstruction.detach()}
        return found

    @property
    def fixed_teacher(self) -> bool:
        """Whether the teacher makes the same of the same inputs in every step, so that it can be kept."""
        return True

    @torch.no_grad()
    def of_teacher(self, inputs: Tensor) -> list[Tensor]:
        """The teacher's features of images, without gradient."""
        return features(self.teacher, self.target, self.teacher_layer, inputs)

    def _distance(self, projected: Tensor, target: Tensor) -> Tensor:
        projected, target = projected.float(), target.float()
        if self.target == "cls":
            return F.kl_div(projected.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
        return F.smooth_l1_loss(projected, F.layer_norm(target, target.shape[-1:]), beta=2.0)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimizer shall get: student and projections."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
