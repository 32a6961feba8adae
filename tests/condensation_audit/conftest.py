"""Small data for condensers and audits."""

import pytest
import torch

from tenfold.data.images import LabelledImages
from tenfold.systems.condensation_audit.data.real_data import RealData, real_data


def _blobs(per_class: int = 12, classes: int = 3, size: int = 8, channels: int = 1, seed: int = 0) -> LabelledImages:
    """Images whose class is told by where they are bright; their neighbours overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.randint(0, 90, (len(labels), channels, size, size), generator=generator)
    for row, label in enumerate(labels.tolist()):
        start = label * size // classes
        images[row, :, start : start + size // 2, :] += 100
    return LabelledImages(images.to(torch.uint8), labels, tuple(f"c{label}" for label in range(classes)))


@pytest.fixture
def blobs():
    """Makes labelled images: ``blobs(per_class, classes, size, channels, seed)``."""
    return _blobs


@pytest.fixture
def data() -> RealData:
    """36 images of three classes."""
    return real_data(_blobs(), name="blobs")
