"""Main models: multi-layer perceptron, convolutional network, rating and click networks, all with dropout modules."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def hidden_layers(inputs: int, widths: Sequence[int], rate: float) -> list[nn.Module]:
    """Linear, ReLU, dropout for each width."""
    layers: list[nn.Module] = []
    for before, width in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(rate)]
    return layers


def image_mlp(
    *, num_classes: int, image_shape: Sequence[int], widths: Sequence[int] = (256, 128, 64), rate: float = 0.2
) -> nn.Sequential:
    """Flattened images ``(batch, channels, height, width)`` to logits ``(batch, num_classes)``.

    Args:
        num_classes: number of outputs.
        image_shape: ``(channels, height, width)``.
        widths: of the hidden layers, each followed by ReLU and dropout.
        rate: of dropout.
    """
    inputs = torch.Size(image_shape).numel()
    return nn.Sequential(nn.Flatten(), *hidden_layers(inputs, widths, rate), nn.Linear(widths[-1], num_classes))


def image_cnn(
    *,
    num_classes: int,
    image_shape: Sequence[int],
    channels: Sequence[int] = (32, 64),
    dense: int = 128,
    rate: float = 0.25,
) -> nn.Sequential:
    """Two 3x3 convolutions, maximum pooling, one dense layer: images to logits.

    Args:
        num_classes: number of outputs.
        image_shape: ``(channels, height, width)``, at least 6 x 6.
        channels: of the convolutions.
        dense: width of the hidden dense layer.
        rate: of dropout, after the pooling and after the dense layer.
    """
    inputs, height, width = image_shape
    first, second = channels
    pooled = second * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, first, 3),
        nn.ReLU(),
        nn.Conv2d(first, second, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(rate),
        nn.Linear(pooled, dense),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(dense, num_classes),
    )


class RatingNetwork(nn.Module):
    """Users and movies to one number: embeddings, dense layers with dropout.

    Args:
        sizes: number of values of each integer column, and of ``genres``, see
            ``Ratings``.
        width: of each embedding.
        widths: of the hidden layers.
        rate: of dropout.

    Its arguments are the columns by name: integers ``(batch,)``, ``genres`` ``(batch, genres)`` whose mean embedding
    is taken. It gives ``(batch,)``: stars, or a logit.
    """

    def __init__(
        self, sizes: dict[str, int], *, width: int = 8, widths: Sequence[int] = (256, 128, 64), rate: float = 0.1
    ) -> None:
        super().__init__()
        self.columns = [name for name in sizes if name != "genres"]
        self.embeddings = nn.ModuleDict({name: nn.Embedding(sizes[name], width) for name in self.columns})
        self.genres = nn.Linear(sizes["genres"], width, bias=False) if "genres" in sizes else None
        inputs = width * (len(self.columns) + (self.genres is not None))
        self.dense = nn.Sequential(*hidden_layers(inputs, widths, rate), nn.Linear(widths[-1], 1))
        for weight in self.embeddings.parameters():
            nn.init.normal_(weight, std=0.05)

    def embed(self, **columns: Tensor) -> Tensor:
        """What the dense layers get: ``(batch, inputs)``."""
        parts = [self.embeddings[name](columns[name]) for name in self.columns]
        if self.genres is not None:
            parts.append(self.genres(columns["genres"]))
        return torch.cat(parts, dim=1)

    def forward(self, **columns: Tensor) -> Tensor:
        """Columns by name to ``(batch,)``."""
        return self.dense(self.embed(**columns))[:, 0]


class CrossLayer(nn.Module):
    """``x0 (w . x + b) + x``: products of features (Deep & Cross, Wang et al. 2017); ``(batch, width)`` twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """One more order of products."""
        return x0 * self.weight(x) + x


class ClickNetwork(nn.Module):
    """Click logs to a logit: 26 embeddings and 26 numbers, dense layers with dropout.

    Args:
        sizes: number of values of each category.
        width: of each embedding.
        widths: of the hidden layers.
        rate: of dropout.
        cross: number of cross layers beside the dense ones; 0 for none.

    Takes ``counts`` ``(batch, numbers)`` and ``categories`` ``(batch, 26)``; gives ``(batch,)``.
    """

    starts: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        numbers: int = 26,
        width: int = 10,
        widths: Sequence[int] = (400, 400, 400),
        rate: float = 0.1,
        cross: int = 0,
    ) -> None:
        super().__init__()
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("starts", starts)
        self.embedding = nn.Embedding(int(sum(sizes)), width)  # one table for all: one look-up
        nn.init.normal_(self.embedding.weight, std=0.05)
        inputs = numbers + width * len(sizes)
        self.normalize = nn.BatchNorm1d(numbers)
        self.dense = nn.Sequential(*hidden_layers(inputs, widths, rate), nn.Linear(widths[-1], 1))
        self.cross = nn.ModuleList(CrossLayer(inputs) for _ in range(cross))
        self.cross_output = nn.Linear(inputs, 1, bias=False) if cross else None

    def embed(self, counts: Tensor, categories: Tensor) -> Tensor:
        """What the dense layers get: ``(batch, inputs)``."""
        embedded = self.embedding(categories + self.starts).flatten(1)
        return torch.cat([self.normalize(counts), embedded], dim=1)

    def forward(self, counts: Tensor, categories: Tensor) -> Tensor:
        """Numbers and categories to a logit per row."""
        x = x0 = self.embed(counts, categories)
        logit = self.dense(x0)
        if self.cross_output is not None:
            for layer in self.cross:
                x = layer(x0, x)
            logit = logit + self.cross_output(x)
        return logit[:, 0]
