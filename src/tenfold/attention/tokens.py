"""The tokens that two networks have in common, and images whose patch grids are the same."""

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.attention.layers import Tap, fixed_image_size, patch_size
from tenfold.errors import UserError

Grid = Literal["match-input", "interpolate", "error"]


def common_tokens(student: Tap, teacher: Tap, grid: Grid = "error") -> tuple[Tap, Tap]:
    """Both taps over the tokens that both networks have.

    Prefix tokens that one side lacks (registers, a distillation token) are dropped from rows and columns, before any
    softmax. The student's patches are interpolated to the teacher's grid where that is asked for.

    Args:
        student: a tap.
        teacher: a tap of the same images or texts.
        grid: what to do where the patch grids differ: ``interpolate`` the student's; else an error, for
            ``match-input`` means that the inputs should have matched.

    Raises:
        UserError: the grids or the numbers of tokens differ.
    """
    keep = min(student.prefix, teacher.prefix)
    student, teacher = _without_prefix(student, keep), _without_prefix(teacher, keep)
    if student.grid != teacher.grid and student.grid is not None and teacher.grid is not None:
        if grid != "interpolate":
            raise UserError(
                f"the patch grids differ: student {_by(student.grid)}, teacher {_by(teacher.grid)}; set "
                "grid='match-input' or grid='interpolate', or give images of another size"
            )
        student = _interpolated(student, teacher.grid)
    if student.tokens != teacher.tokens:
        raise UserError(f"student and teacher see {student.tokens} and {teacher.tokens} tokens; they must be the same")
    return student, teacher


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def _without_prefix(one: Tap, keep: int) -> Tap:
    if one.prefix == keep:
        return one
    kept = torch.cat([torch.arange(keep), torch.arange(one.prefix, one.tokens)]).to(one.q.device)
    bias = one.bias
    if bias is not None:
        bias = bias.expand(*bias.shape[:2], one.tokens, one.tokens)[:, :, kept][..., kept]
    return replace(one, q=one.q[:, :, kept], k=one.k[:, :, kept], v=one.v[:, :, kept], bias=bias, prefix=keep)


def _interpolated(one: Tap, grid: tuple[int, int]) -> Tap:
    if one.bias is not None:
        raise UserError("a layer with position biases cannot be interpolated to another grid; use grid='match-input'")

    def resize(x: Tensor) -> Tensor:
        batch, heads, _, width = x.shape
        patches = x[:, :, one.prefix :].transpose(2, 3).reshape(batch, heads * width, *one.grid)  # type: ignore[misc]
        resized = F.interpolate(patches, grid, mode="bilinear", align_corners=False)
        return torch.cat([x[:, :, : one.prefix], resized.view(batch, heads, width, -1).transpose(2, 3)], 2)

    return replace(one, q=resize(one.q), k=resize(one.k), v=resize(one.v), grid=grid)


def matched_input(images: Tensor, student: Any, teacher: Any) -> Tensor:
    """The teacher's images, resized so that its patch grid is the student's.

    Args:
        images: ``(batch, channels, height, width)`` as the student sees them.
        student: network with patches.
        teacher: network with patches of another size; it must take the size that follows.

    Raises:
        UserError: a network has no patches, or the teacher takes images of one other size alone.
    """
    own, other = patch_size(student), patch_size(teacher)
    if own is None or other is None:
        raise UserError("grid='match-input' needs the patch sizes of both networks; use grid='interpolate'")
    size = (images.shape[-2] // own[0] * other[0], images.shape[-1] // own[1] * other[1])
    only = fixed_image_size(teacher)
    if only is not None and size != only:
        raise UserError(
            f"the teacher takes images of {_by(only)} pixels alone, and {_by(size)} would match the student's "
            f"{images.shape[-2] // own[0]} x {images.shape[-1] // own[1]} patches: use grid='interpolate', a student "
            "of the teacher's grid, or a teacher that is built for that size"
        )
    return resized(images, size)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size, bicubically, with antialiasing."""
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
