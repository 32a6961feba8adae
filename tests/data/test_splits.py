"""Splits by name: disjoint, complete, and what their batches go through."""

import os

import pytest
import torch

from tenfold.data import load_splits


def test_validation_images_are_not_augmented_unless_asked():
    def validation(**options):
        splits = load_splits("digits", validation=50, augment="crop-flip", **options)
        return splits, torch.cat([images for images, _, _ in splits.validation_batches()])

    splits, plain = validation()
    again = torch.cat([images for images, _, _ in splits.validation_batches()])
    assert torch.equal(plain, again)
    pixels = (plain * splits.std[0] + splits.mean[0]) * 255
    torch.testing.assert_close(pixels.round(), splits.validation.images.float())
    _, official = validation(augment_validation=True)
    assert not torch.equal(plain, official)


def test_splits_are_disjoint_and_complete():
    splits = load_splits("digits", validation=300)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1100, 300, 397]
    rows = torch.cat([part.images.flatten(1) for part in (splits.train, splits.validation, splits.test)])
    assert len(rows.unique(dim=0)) == 1797


@pytest.mark.skipif("TENFOLD_DATA" not in os.environ, reason="needs TENFOLD_DATA")
def test_fashion_mnist_is_split_by_position():
    splits = load_splits("fashion-mnist", validation=1000)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7000, 1000, 2000]
    assert splits.train.classes[9] == "Ankle boot"
    assert any("not comparable" in note for note in splits.notes)
    resized = load_splits("fashion-mnist", validation=1000, resize=32)
    assert resized.image_shape == (1, 32, 32) and len(resized.notes) == 2
