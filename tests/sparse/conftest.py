import pytest
import torch
from sparse_net import Net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 12, (4, 6), generator=generator) for _ in range(8)]
