"""Retrieval by a pre-trained dual encoder: similarity of captions and images, and its recall, both ways."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.systems.dual_encoder.inputs.preparation import ImagePreparation
from tenfold.systems.dual_encoder.inputs.tokenizer import QuestionTokenizer
from tenfold.systems.dual_encoder.sets.images import ImageStore


@torch.inference_mode()
def caption_similarity(
    stage: Any,
    captions: Sequence[str],
    images: ImageStore,
    tokenizer: QuestionTokenizer,
    preparation: ImagePreparation,
    batch_size: int = 64,
) -> Tensor:
    """Contrastive similarity of every caption with every image, ``(captions, images)``; each is encoded once.

    Args:
        stage: a ``Pretraining``, in eval mode.
        captions: texts.
        images: the images.
        tokenizer: of the model.
        preparation: of its images.
        batch_size: captions or images at a time.

    Raises:
        UserError: a caption is longer than the tokenizer's limit, or an image cannot be read.
    """
    device = next(stage.parameters()).device
    texts = [tokenizer.batch(captions[n : n + batch_size]) for n in range(0, len(captions), batch_size)]
    t = torch.cat([stage.model.encode_text(text.to(device), mask.to(device)) for text, mask in texts])
    parts = []
    for rows in torch.arange(len(images.names)).split(batch_size):
        pixels, mask = preparation.batch(images.prepared(rows.tolist(), preparation))
        real = None if mask is None else mask[:, None].to(device)
        parts.append(stage.model.encode_images(pixels[:, None].to(device), real)[:, 0])
    return stage.similarity(t, torch.cat(parts))


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
