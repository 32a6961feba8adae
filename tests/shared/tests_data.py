"""Small data sets in the real formats."""

import numpy as np


def write_cifar(root, images):
    """CIFAR-10 in its binary form: ``images`` random ones in each file."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = random.integers(0, 10, (images, 1), dtype=np.uint8)
        pixels = random.integers(0, 256, (images, 3072), dtype=np.uint8)
        np.hstack([labels, pixels]).tofile(folder / f"{name}.bin")
