"""Vision transformers on some of their patches: the same ones for student and teacher, with their own positions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.attention.layers import patch_size
from tenfold.errors import UserError
from tenfold.seeds import derived_seed
from tenfold.training.parallel import rank, world_size


class PatchMasks(nn.Module):
    """Masks of a training: each step's are drawn for the global batch, from a seed and the number of the step.

    So they are the same for any number of processes, whose rows are ``rank, rank + processes, ...`` of the batch, and
    after a training was resumed. Outside training the number of the step stays.

    Args:
        mask_ratio: share of the patches that is left out.
    """

    def __init__(self, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.seed, self.step = int(torch.randint(2**62, ())), 0

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Masks of this process's images, see `random_patches`."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.step))
        self.step += self.training
        return random_patches(model, images, self.mask_ratio, generator)

    def get_extra_state(self) -> Tensor:
        """Seed and step, kept in checkpoints."""
        return torch.tensor([self.seed, self.step])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint."""
        self.seed, self.step = (int(value) for value in state)


def random_patches(
    model: nn.Module, images: Tensor, mask_ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the patches that stay visible, for each image its own, in rising order.

    Args:
        model: a vision transformer; gives the patch size.
        images: ``(batch, channels, height, width)``, of equal numbers on all processes.
        mask_ratio: share of the patches that is left out.
        generator: on the CPU; equal on all processes, it gives each of them its rows of the global batch's masks. The
            global one where ``None``.

    Returns:
        ``(batch, visible)`` int64 indices of patches, rows of the grid first.
    """
    size = patch_size(model)
    if size is None:
        raise UserError(f"{type(model).__name__} has no patches that could be masked")
    patches = (images.shape[-2] // size[0]) * (images.shape[-1] // size[1])
    visible = int(patches * (1 - mask_ratio))
    if visible < 1:
        raise UserError(f"mask_ratio {mask_ratio} leaves none of {patches} patches")
    ranks = world_size()
    noise = torch.rand(ranks * len(images), patches, generator=generator)
    noise = noise[rank() if ranks > 1 else 0 :: ranks].to(images.device)
    return noise.argsort(1)[:, :visible].sort(1).values


class _Keep(nn.Module):
    def __init__(self, keep: Tensor, prefix: int) -> None:
        super().__init__()
        self.keep, self.prefix = keep, prefix

    def forward(self, x: Tensor) -> Tensor:
        patches = x[:, self.prefix :]
        kept = patches.gather(1, self.keep[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, : self.prefix], kept], 1)


@contextmanager
def keep_patches(model: Any, keep: Tensor) -> Iterator[None]:
    """Within the block, a timm vision transformer sees only some patches of each image, with their own positions.

    Args:
        model: has timm's ``patch_drop`` between position embedding and blocks.
        keep: ``(batch, visible)`` indices of patches.

    Raises:
        UserError: the network is not of this kind.
    """
    if not isinstance(getattr(model, "patch_drop", None), nn.Module) or not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"masked input needs a timm vision transformer; {type(model).__name__} is none")
    before = model.patch_drop
    model.patch_drop = _Keep(keep, model.num_prefix_tokens)
    try:
        yield
    finally:
        model.patch_drop = before
