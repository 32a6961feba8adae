"""Relation distillation (TinyMIM, CVPR 2023; MiniLM and MiniLMv2 for text): the algorithm.


    teacher: frozen; runs up to the queries, keys and values of its block l_t, without gradient
    student: runs up to those of its last block, which has as many heads as the teacher's block (the adaptive block)

    for images:
        v  = random crop and flip of the images                  one geometric view for both
        q_t, k_t, v_t = teacher(v)
        q_s, k_s, v_s = student(colour jitter of v)
        L = KL(softmax(q_t k_t^T / sqrt(d_t)) || softmax(q_s k_s^T / sqrt(d_s)))       relation Q-K
          + KL(softmax(v_t v_t^T / sqrt(d_t)) || softmax(v_s v_s^T / sqrt(d_s)))       relation V-V
        step on L                                                no labels, no other term

Relations are ``N x N`` whatever the widths are, so that nothing has to be projected; all tokens take part.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.attention.heads import Heads, align_heads, regrouped, repeat_heads
from tenfold.attention.layers import (
    Tap,
    Tapper,
    bare,
    call,
    default_teacher_layer,
    depth,
    fixed_image_size,
    images_of,
    in_eval,
    resolve_layer,
)
from tenfold.attention.taps import tap, tap_layers
from tenfold.attention.tokens import Grid, common_tokens, matched_input, resized
from tenfold.errors import UserError
from tenfold.losses import Kernel, relation_agreement, relation_kl, relation_mse
from tenfold.systems.relation_distillation.training.freezing import Lent, freeze_unreached, leave_teacher_out
from tenfold.systems.relation_distillation.vit.patch_masks import PatchMasks, keep_patches

PRESETS: dict[str, dict[str, Any]] = {
    "tinymim": {"pairs": ("qk", "vv"), "heads": "auto"},
    "minilm": {"pairs": ("qk", "vv"), "heads": "auto", "teacher_layer": -1},
    # 48 relation heads for base-width teachers, 64 for large ones: from memory of that paper.
    "minilmv2": {"pairs": ("qq", "kk", "vv"), "heads": 48},
}
"""Arguments of `RelationDistiller` by the name of the method that they reproduce."""


class RelationLoss(nn.Module):
    """Sum of the divergences of several relations of two attention layers (TinyMIM, eq. 4, 5 and 9).

    Args:
        pairs: relations as pairs of letters out of ``q``, ``k``, ``v``: rows, then columns.
        weights: one factor per pair; 1 where ``None``.
        softmax: compare attention-like maps by their divergence; else scaled logits by their mean square (ablation).
        kernel: see `tenfold.losses.relation_kl`.

    Raises:
        UserError: a pair is none, or the weights are not one per pair.

    Example:
        >>> from tenfold.systems.relation_distillation import Tap
        >>> def layer(heads, width):
        ...     return Tap(*torch.randn(3, 2, heads, 5, width), scale=width**-0.5)
        >>> losses = RelationLoss()(layer(3, 8), layer(3, 16))
        >>> sorted(losses)
        ['loss', 'qk', 'vv']
    """

    def __init__(
        self,
        pairs: Sequence[str] = ("qk", "vv"),
        *,
        weights: Sequence[float] | None = None,
        softmax: bool = True,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        for pair in pairs:
            if len(pair) != 2 or not set(pair) <= set("qkv"):
                raise UserError(f"a relation is two letters out of q, k, v, such as 'qk'; got {pair!r}")
        if not pairs or len(set(pairs)) != len(pairs):
            raise UserError(f"name each relation once, and at least one; got {list(pairs)}")
        if weights is not None and len(weights) != len(pairs):
            raise UserError(f"{len(pairs)} relations need as many weights; got {len(weights)}")
        self.pairs = tuple(pairs)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(pairs)
        self.softmax = softmax
        self.kernel = kernel

    def forward(self, student: Tap, teacher: Tap, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            student: a tap, aligned with the teacher's in heads and tokens.
            teacher: a tap; constant.
            mask: ``(batch, N)`` booleans, true for real tokens.

        Returns:
            ``loss``, the weighted sum, and each pair's divergence under its name, without gradient; scalars.
        """
        losses: dict[str, Tensor] = {}
        total: Tensor | None = None
        for pair, weight in zip(self.pairs, self.weights, strict=True):
            sides = (*operands(student, pair), *operands(teacher, pair))
            scales: dict[str, Any] = {"scale_s": student.scale, "scale_t": teacher.scale}
            if self.softmax:
                value = relation_kl(
                    *sides,
                    **scales,
                    mask=mask,
                    causal=student.causal or teacher.causal,
                    kernel=self.kernel,
                    bias_s=_bias(student, pair, mask),
                    bias_t=_bias(teacher, pair, mask),
                )
            else:
                value = relation_mse(*sides, **scales, mask=mask)
            losses[pair] = value.detach()
            total = weight * value if total is None else total + weight * value
        assert total is not None
        return {"loss": total, **losses}


def operands(one: Tap, pair: str) -> tuple[Tensor, Tensor]:
    """Rows and columns of a relation; grouped keys are repeated for the queries that share them."""
    rows, columns = getattr(one, pair[0]), getattr(one, pair[1])
    heads = max(rows.shape[1], columns.shape[1])
    return repeat_heads(rows, heads), repeat_heads(columns, heads)


def _bias(one: Tap, pair: str, mask: Tensor | None) -> Tensor | None:
    """A layer's whole addend for its attention map; for other relations only what it excludes."""
    if one.bias is None:
        return None
    lowest = torch.finfo(one.bias.dtype).min
    excluded = one.bias.detach() <= lowest / 2
    if mask is not None:  # what is only the padding again is already in the mask, which fused kernels take
        padding = ~mask[:, None, None, :]
        if bool((excluded | padding).eq(padding).all()) and (
            pair != "qk" or not one.bias.masked_fill(excluded, 0).any()
        ):
            return None
    if pair == "qk":
        return one.bias
    return torch.zeros_like(one.bias).masked_fill(excluded, lowest) if bool(excluded.any()) else None


class RelationDistiller(nn.Module):
    """Trains a student's attention layer towards the relations of a frozen teacher's, for any two attention stacks.

    An ordinary module whose forward pass is its loss: it works in any training loop. Only the student's parameters
    are trained and only its state is saved; both networks stop at their taps.

    Args:
        student: the network that learns; its last layer's head count is changed where ``heads`` says so.
        teacher: the network that is copied; frozen.
        pairs: see `RelationLoss`.
        student_layer: from 1, or -1 for the last; or a callable that makes the tap.
        teacher_layer: likewise; ``auto`` is `default_teacher_layer`.
        heads: how head counts are made equal: ``adaptive`` changes the student's layer, a number re-splits both sides
            into so many relation heads, ``mean`` averages the heads' logits; ``auto`` is adaptive where that is
            possible, else the largest number of relation heads that divides both widths.
        qk: see `tap`.
        grid: where patch grids differ: ``match-input`` resizes the teacher's images, ``interpolate`` the student's
            queries, keys and values, ``error`` refuses.
        kernel: see `tenfold.losses.relation_kl`.
        softmax: see `RelationLoss`.
        weights: see `RelationLoss`.
        more_layers: further pairs ``(student layer, teacher layer, weight)``, counted from 1.
        mask_ratio: share of the patches that both networks do without, the same for both (ablation; timm's ViTs).
        decoder: masked-autoencoder decoder that reconstructs the student's missing patches, its loss added
            (ablation).
        teacher_training: run the teacher in training mode, with its drop path (ablation).
        example: a batch; the parts of the student that its loss does not reach are frozen and listed in ``untrained``.

    What it changes in the networks (frozen parameters, the teacher's mode, the head count of the student's layer) is
    theirs again after `release`.

    Raises:
        UserError: a layer does not exist, heads cannot be aligned, or a network cannot run on the example.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[str] = ("qk", "vv"),
        *,
        student_layer: int | Tapper = -1,
        teacher_layer: int | Tapper | Literal["auto"] = "auto",
        heads: Heads = "auto",
        qk: Literal["effective", "raw"] = "effective",
        grid: Grid = "match-input",
        kernel: Kernel = "auto",
        softmax: bool = True,
        weights: Sequence[float] | None = None,
        more_layers: Sequence[tuple[int, int, float]] = (),
        mask_ratio: float = 0.0,
        decoder: nn.Module | None = None,
        teacher_training: bool = False,
        example: Any = None,
    ) -> None:
        super().__init__()
        if mask_ratio and not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio is a share of the patches, in [0, 1); got {mask_ratio}")
        if decoder is not None and not mask_ratio:
            raise UserError("a decoder has nothing to reconstruct without mask_ratio")
        self._lent = (Lent(student), Lent(teacher))
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        self.decoder = decoder
        self.relation = RelationLoss(pairs, weights=weights, softmax=softmax, kernel=kernel)
        self.qk, self.grid = qk, grid
        self.masks = PatchMasks(mask_ratio) if mask_ratio else None
        self.teacher_training = teacher_training
        self.layers = _layer_pairs(student, teacher, student_layer, teacher_layer, more_layers)
        runs = partial(self._student_runs, example)
        self.heads = [align_heads(student, teacher, pair[0], pair[1], heads, runs) for pair in self.layers]
        self.untrained: list[str] = []
        leave_teacher_out(self)
        self.train()
        if example is not None:
            self.untrained = freeze_unreached(student, self.loss(example)["loss"])

    def train(self, mode: bool = True) -> "RelationDistiller":
        """Training mode for the student; the teacher stays in eval mode unless its drop path is wanted."""
        super().train(mode)
        self.teacher.train(mode and self.teacher_training)
        return self

    def release(self, *, keep_heads: bool = False) -> None:
        """Give the networks back as they were, but for what the student learnt.

        The student's layer has its own number of heads again, as published: the adaptive block is a device of the
        training, and neither a state dict nor another library's configuration could hold its head count.

        Args:
            keep_heads: leave the student's layer with the teacher's number of heads; `heads_per_block` tells them, and
                whoever loads the weights gives them to `set_heads_per_block`.
        """
        for lent in self._lent:
            lent.give_back(keep_heads=keep_heads)

    @torch.no_grad()
    def _student_runs(self, example: Any) -> bool:
        """Whether the student still runs to its end; not known without an example."""
        if example is None:
            return True
        inputs = example[0] if isinstance(example, tuple | list) else example
        try:
            with in_eval(self.student):
                call(self.student, inputs)
        except (UserError, RuntimeError, IndexError):
            return False
        return True

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """See `loss`."""
        return self.loss(batch)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: inputs of both networks, or ``(student's inputs, teacher's inputs)``; each a tensor, or a dict of
                keyword arguments, whose ``attention_mask`` says which tokens are real. In place of the teacher's
                inputs, what `of_teacher` made of them.

        Returns:
            ``loss`` to be minimised, and the pairs' divergences of the first layer pair; scalars.
        """
        for_student, for_teacher, mask, keep, images = self._inputs(batch)
        students, output = self._tap(
            self.student, [s for s, _, _ in self.layers], for_student, keep, self.decoder is None
        )
        teachers = self._teachers(for_teacher, keep)
        losses: dict[str, Tensor] = {}
        for number, (_, _, weight) in enumerate(self.layers):
            found = self.relation(*self._aligned(students[number], teachers[number], number), mask)
            if number == 0:
                losses = found if weight == 1 else found | {"loss": weight * found["loss"]}
            else:
                losses["loss"] = losses["loss"] + weight * found["loss"]
        if self.decoder is not None:
            reconstruction = self.decoder(output, keep, images)
            losses |= {"loss": losses["loss"] + reconstruction, "reconstruction": reconstruction.detach()}
        return losses

    @property
    def fixed_teacher(self) -> bool:
        """Whether the teacher makes the same of the same inputs in every step, so that it can be kept."""
        return self.masks is None and not self.teacher_training

    def of_teacher(self, inputs: Any) -> list[Tap]:
        """The teacher's side of a batch, without gradient: one tap for each pair of layers.

        Args:
            inputs: the teacher's; images get the size that ``grid`` asks for.
        """
        return self._teachers(self._matched(inputs), None)

    def _teachers(self, inputs: Any, keep: Tensor | None) -> list[Tap]:
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], Tap):
            return inputs
        with torch.no_grad():
            return self._tap(self.teacher, [t for _, t, _ in self.layers], inputs, keep, True)[0]

    @torch.no_grad()
    def agreement(self, batch: Any) -> dict[str, float]:
        """How far the relations agree, for each pair of the first layer pair; without dropout on either side.

        Args:
            batch: see `loss`.

        Returns:
            For each pair ``<pair>_overlap``, the mean overlap of the five tokens that a row attends to most, and
            ``<pair>_share``, the divergence as a share of a uniform student's.
        """
        with in_eval(self):
            for_student, for_teacher, mask, keep, _ = self._inputs(batch)
            student = self._tap(self.student, [self.layers[0][0]], for_student, keep, True)[0][0]
            teacher = self._tap(self.teacher, [self.layers[0][1]], for_teacher, keep, True)[0][0]
        student, teacher = self._aligned(student, teacher, 0)
        found: dict[str, float] = {}
        for pair in self.relation.pairs:
            overlap, share = relation_agreement(
                *operands(student, pair),
                *operands(teacher, pair),
                scale_s=student.scale,
                scale_t=teacher.scale,
                mask=mask,
                causal=student.causal or teacher.causal,
                bias_s=_bias(student, pair, mask),
                bias_t=_bias(teacher, pair, mask),
            )
            found |= {f"{pair}_overlap": float(overlap), f"{pair}_share": float(share)}
        return found

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that an optimizer shall get."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _inputs(self, batch: Any) -> tuple[Any, Any, Tensor | None, Tensor | None, Tensor | None]:
        for_student, for_teacher = pair_of(batch)
        mask = for_student.get("attention_mask") if isinstance(for_student, Mapping) else None
        mask = None if mask is None else mask.bool()
        images = images_of(for_student)
        if images is not None:
            for_teacher = self._matched(for_teacher)
        keep = None
        if self.masks is not None:
            if images is None:
                raise UserError("mask_ratio masks patches of images; these inputs are none")
            keep = self.masks(self.student, images)
        return for_student, for_teacher, mask, keep, images

    def _matched(self, inputs: Any) -> Any:
        """The teacher's images in the size whose patch grid is the student's, where that is asked for."""
        if self.grid == "error":
            return inputs
        if isinstance(inputs, Tensor) and inputs.ndim == 4:
            return self._fitting(inputs)
        if isinstance(inputs, Mapping) and "pixel_values" in inputs:
            return {**inputs, "pixel_values": self._fitting(inputs["pixel_values"])}
        return inputs

    def _fitting(self, images: Tensor) -> Tensor:
        if self.grid == "match-input":
            return matched_input(images, self.student, self.teacher)
        only = fixed_image_size(self.teacher)
        return images if only is None else resized(images, only)

    def _tap(
        self, model: nn.Module, layers: list[Any], inputs: Any, keep: Tensor | None, stop: bool
    ) -> tuple[list[Tap], Any]:
        if any(callable(layer) for layer in layers):
            return [tap(model, layer, inputs, qk=self.qk) for layer in layers], None
        if keep is None:
            return tap_layers(model, layers, inputs, qk=self.qk, stop=stop)
        with keep_patches(bare(model), keep):
            return tap_layers(model, layers, inputs, qk=self.qk, stop=stop)

    def _aligned(self, student: Tap, teacher: Tap, number: int) -> tuple[Tap, Tap]:
        student, teacher = common_tokens(student, teacher, self.grid)
        how = self.heads[number]
        if how != "adaptive":
            attention = "qk" in self.relation.pairs
            return regrouped(student, how, attention=attention), regrouped(teacher, how, attention=attention)
        if student.heads != teacher.heads:
            raise UserError(
                f"the student's layer has {student.heads} heads, the teacher's {teacher.heads}, and heads='adaptive' "
                "could not change them; name a number of relation heads"
            )
        return student, teacher


def pair_of(batch: Any) -> tuple[Any, Any]:
    """The inputs of student and teacher: two of a pair, or the same for both.

    Raises:
        UserError: a tuple is no pair of inputs, such as images with their labels.
    """
    if not isinstance(batch, tuple | list):
        return batch, batch
    images = images_of(batch[0]) if len(batch) == 2 else None
    labels = images is not None and isinstance(batch[1], Tensor) and batch[1].ndim != 4
    if len(batch) != 2 or labels:
        raise UserError(
            "a batch is the inputs of both networks, or a pair (student's inputs, teacher's inputs); take the inputs "
            "out of others, such as inputs=lambda batch: batch[0] where labels come along"
        )
    return batch[0], batch[1]


def _layer_pairs(
    student: nn.Module,
    teacher: nn.Module,
    student_layer: Any,
    teacher_layer: Any,
    more: Sequence[tuple[int, int, float]],
) -> list[tuple[Any, Any, float]]:
    depth_s, depth_t = depth(student), depth(teacher)
    if teacher_layer == "auto":
        if depth_t is None or depth_s is None:
            raise UserError("the depth of a network is not known: name the teacher's layer")
        teacher_layer = default_teacher_layer(depth_t, depth_s)
    pairs = [(student_layer, teacher_layer, 1.0), *more]

    def number(layer: Any, known: int | None, whose: str) -> Any:
        return layer if callable(layer) or known is None else resolve_layer(layer, known, whose)

    return [(number(s, depth_s, "the student"), number(t, depth_t, "the teacher"), float(w)) for s, t, w in pairs]
