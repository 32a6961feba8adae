"""Recall of retrieval, both ways."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recalls(similarity: Tensor, rows: Sequence[int], at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k in points: of an image, whether one of its captions is among the first k; of a caption, its image.

    Args:
        similarity: ``(captions, images)``.
        rows: for each caption the number of its image.
        at: values of k.

    Returns:
        ``text_to_image@k`` and ``image_to_text@k``.
    """
    own = torch.as_tensor(rows)
    # How many are better than the right one; of an image, than the best of its own captions. Ties count against it.
    right = similarity.gather(1, own[:, None])
    of_text = (similarity >= right).sum(1) - 1
    mine = own[:, None] == torch.arange(similarity.shape[1])
    best = similarity.masked_fill(~mine, float("-inf")).max(0).values
    of_image = ((similarity >= best) & ~mine).sum(0)
    asked = mine.any(0)
    found = {}
    for k in at:
        found[f"text_to_image@{k}"] = 100 * (of_text < k).float().mean().item()
        found[f"image_to_text@{k}"] = 100 * (of_image < k)[asked].float().mean().item()
    return found
