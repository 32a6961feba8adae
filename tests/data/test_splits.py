"""Splits by name: disjoint, complete, and what their batches go through."""

import os

import pytest
import torch

from tenfold.data import ImageOptions, load_image_splits, load_splits
from tenfold.data.options import validation_size
from tenfold.errors import UserError


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
    assert resized.image_shape == (1, 32, 32) and any("28 x 28 to 32 x 32" in note for note in resized.notes)


def test_settings_follow_the_data_and_those_without_effect_are_refused():
    """A preset's numbers are for its own data: what is left out follows from the data that are named."""
    assert [
        validation_size(name, images, None) for name, images in (("digits", 1400), ("folder", 160), ("cifar10", 99))
    ] == [300, 16, 9]
    assert load_image_splits(ImageOptions()).augment == "none"
    for options, message in (
        (ImageOptions(root="somewhere"), "data.root 'somewhere' has no effect"),
        (ImageOptions(image_size=32), "--data.resize"),
        (ImageOptions(validation=0), "validation must be greater than 0"),
        (ImageOptions(name="mnist", unreadable="leave-out"), "data.unreadable is for"),
        (ImageOptions(workers=-1), "workers must be"),
    ):
        with pytest.raises(UserError, match=message):
            load_image_splits(options)
    with pytest.raises(UserError, match="no data 'nonsense'"):
        load_splits("nonsense")
