"""What a pre-trained and a fine-tuned network are judged by."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.attention.recorders import Reached
from tenfold.data import Batches
from tenfold.training.parallel import gather_rows, total_over_ranks


@torch.no_grad()
def collect(
    function: Callable[[Tensor], Tensor], model: nn.Module, batches: Batches, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A function of all images, in eval mode, from all ranks.

    Args:
        function: images ``(batch, channels, height, width)`` to rows ``(batch, n)``.
        model: what it computes with; moved to ``device``, left in its own mode.
        batches: see `tenfold.data.Batches`.
        device: where it computes.

    Returns:
        ``(images, n)`` rows and ``(images,)`` labels, on the CPU, the same on every rank.
    """
    training = model.training
    model.to(device).eval()
    rows, labels, indices = [], [], []
    for images, truth, numbers in batches:
        rows.append(function(images.to(device)).float())
        labels.append(truth)
        indices.append(numbers)
    model.train(training)
    places = torch.cat(indices).to(device)
    total = total_over_ranks(len(places))
    return (
        gather_rows(torch.cat(rows), places, total).cpu(),
        gather_rows(torch.cat(labels).to(device), places, total).cpu(),
    )


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """``top1`` and ``per_class``, the mean over the classes of their accuracies, in percent.

    Args:
        logits: ``(images, classes)``.
        labels: ``(images,)``.
    """
    correct = (logits.argmax(-1) == labels).double()
    classes = labels.unique()
    return {
        "top1": 100 * correct.mean().item(),
        "per_class": 100 * torch.stack([correct[labels == label].mean() for label in classes]).mean().item(),
    }


def scores(logits: Tensor, labels: Tensor, metric: str) -> Tensor:
    """A score per image whose mean is the accuracy in percent: what is resampled to tell chance.

    Args:
        logits: ``(images, classes)``.
        labels: ``(images,)``.
        metric: ``top1``, or ``per_class``: each image then counts by the inverse of its class's frequency.
    """
    correct = 100.0 * (logits.argmax(-1) == labels).double()
    if metric == "top1":
        return correct
    present, place, counts = labels.unique(return_inverse=True, return_counts=True)
    return correct * len(labels) / (len(present) * counts[place])


def patch_features(model: Any, images: Tensor, block: int = -2) -> Tensor:
    """Mean over patches of the tokens after a block, normalized without weights: ``(batch, width)``.

    The block before the last by default: relation distillation leaves most of the last one untrained.

    Args:
        model: timm vision transformer.
        images: ``(batch, channels, height, width)``.
        block: number as an index of the list of blocks.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)
        raise Reached

    blocks = model.blocks
    handle = blocks[max(block, -len(blocks))].register_forward_hook(keep)
    try:
        with suppress(Reached):
            model(images)
    finally:
        handle.remove()
    normalized = nn.functional.layer_norm(seen[0], seen[0].shape[-1:])
    return normalized[:, model.num_prefix_tokens :].mean(1)


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> float:
    """Accuracy in percent of the ``k`` nearest neighbours by cosine, weighted by ``exp(similarity / 0.07)`` (DINO).

    Args:
        train: ``(images, width)`` features.
        train_labels: ``(images,)``.
        test: ``(images, width)``.
        test_labels: ``(images,)``.
        k: neighbours; at most the training images.
    """
    train, test = nn.functional.normalize(train, dim=-1), nn.functional.normalize(test, dim=-1)
    classes = int(train_labels.max()) + 1
    correct = 0
    for rows, truth in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)), -1)
        votes = torch.zeros(len(rows), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / 0.07).exp())
        correct += int((votes.argmax(-1) == truth).sum())
    return 100 * correct / len(test)


def linear_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy in percent of logistic regression on standardised, frozen features.

    Args:
        train: ``(images, width)`` features.
        train_labels: ``(images,)``.
        test: ``(images, width)``.
        test_labels: ``(images,)``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.numpy(), train_labels.numpy())
    return 100 * float(probe.score(test.numpy(), test_labels.numpy()))


def mean_of(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means of equally named numbers."""
    table = list(rows)
    return {name: sum(row[name] for row in table) / len(table) for name in table[0]}
