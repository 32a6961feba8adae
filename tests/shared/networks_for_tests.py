"""Networks of a user's own, as the factory path of the command line names them."""

from torch import nn


def sequential(num_classes):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def tabular(num_inputs=5):
    """A regression network on a table, with weights that are the same every time."""
    import torch

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(num_inputs, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1)).eval()


def tabular_without_dropout():
    """The same without dropout."""
    import torch

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1)).eval()


def tabular_rows():
    """Batches for it, with ids."""
    import torch

    random = torch.Generator().manual_seed(3)
    for number in range(4):
        yield torch.randn(100, 5, generator=random), torch.arange(100 * number, 100 * number + 100)
