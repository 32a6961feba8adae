"""ZCA whitening: pixels decorrelated, fitted on training images only, shipped with every set that used it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import UserError


@dataclass(frozen=True)
class ZCA:
    """A fitted whitening and its inverse.

    Attributes:
        mean: ``(d,)`` mean of the flattened training images.
        matrix: ``(d, d)`` symmetric whitening matrix.
        inverse: ``(d, d)`` its inverse.
        eps: what was added to the eigenvalues of the covariance.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    eps: float

    def transform(self, images: Tensor) -> Tensor:
        """Whiten ``(n, channels, height, width)``.

        Raises:
            UserError: the images have another size than the fitted ones.
        """
        return self._apply(images, self.matrix, before=-self.mean, after=None)

    def undo(self, images: Tensor) -> Tensor:
        """Undo `transform`."""
        return self._apply(images, self.inverse, before=None, after=self.mean)

    def _apply(self, images: Tensor, matrix: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        flat = images.flatten(1)
        if flat.shape[1] != len(self.mean):
            raise UserError(f"the whitening is of {len(self.mean)} values an image; these have {flat.shape[1]}")
        if before is not None:
            flat = flat + before.to(flat)
        flat = flat @ matrix.to(flat)
        if after is not None:
            flat = flat + after.to(flat)
        return flat.reshape(images.shape)


def fit_zca(images: Tensor, eps: float = 0.1) -> ZCA:
    """Fit the whitening that trajectory matching uses (eps as in its code).

    Args:
        images: ``(n, channels, height, width)`` normalized **training** images.
        eps: added to the eigenvalues; the whitened covariance is ``l / (l + eps)`` of an eigenvalue ``l``, not one.
    """
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    scale = (values.clamp(min=0) + eps).sqrt()
    return ZCA(
        mean=mean.float(),
        matrix=((vectors / scale) @ vectors.T).float(),
        inverse=((vectors * scale) @ vectors.T).float(),
        eps=eps,
    )
