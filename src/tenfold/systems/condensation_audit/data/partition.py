"""Images divided evenly over their classes."""

import torch
from torch import Tensor

from tenfold.data.images import LabelledImages
from tenfold.errors import UserError


def halves(clean: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Held-out images in two halves, alternately within each class: what is searched with is not judged with.

    Raises:
        UserError: a class has fewer than two images.
    """
    counts = torch.bincount(clean.labels, minlength=len(clean.classes))
    if int(counts.min()) < 2:
        scarce = clean.classes[int(counts.argmin())]
        raise UserError(
            f"class {scarce!r} has {int(counts.min())} held-out clean images; the audit needs at least 2 of each "
            "class, better 20"
        )
    rows = [(clean.labels == label).nonzero().flatten() for label in range(len(clean.classes))]
    first, second = (torch.cat([row[half::2] for row in rows]).sort().values for half in (0, 1))
    return clean.subset(first), clean.subset(second)


def spread_rows(labels: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` images, spread evenly over the classes that occur; in the order of their labels."""
    rows = [(labels == label).nonzero().flatten() for label in labels.unique()]
    chosen: list[Tensor] = []
    for position in range(max(map(len, rows))):
        layer = [row[position : position + 1] for row in rows if len(row) > position]
        chosen += layer[: count - len(chosen)]
        if len(chosen) >= count:
            break
    return torch.cat(chosen).sort().values
