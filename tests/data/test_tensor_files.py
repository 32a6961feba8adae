"""SVHN, STL-10 and Tiny ImageNet in their published files, and images brought to a side."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tenfold.data import (
    images_from_arrays,
    load_splits,
    load_stl10,
    load_svhn,
    load_tiny_imagenet,
    resize_images,
)
from tenfold.data.formats.stl10 import STL10_CLASSES
from tenfold.errors import UserError

RNG = np.random.default_rng(0)


def one_line(refused, *parts):
    assert "\n" not in str(refused.value)
    for part in parts:
        assert part in str(refused.value)


# --- SVHN -----------------------------------------------------------------------------------------------------


def write_svhn(folder, split="train", images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8) if images is None else images
    labels = np.array([[n % 10 + 1] for n in range(images.shape[-1])], np.uint8) if labels is None else labels
    savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return images


def test_svhn_has_the_digit_zero_first_and_its_images_upright(tmp_path):
    written = write_svhn(tmp_path / "svhn")
    found = load_svhn(tmp_path, "train")
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert found.images[5, 2, 30, 7] == written[30, 7, 2, 5]
    write_svhn(tmp_path / "svhn", "test")
    splits = load_splits("svhn", root=str(tmp_path), validation=2)
    assert (len(splits.train), splits.image_shape, splits.mean) == (10, (3, 32, 32), (0.4377, 0.4438, 0.4728))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 32, 32, 4), np.uint8), None, r"\(3, 32, 32, 4\)"),
        (np.zeros((32, 32, 3, 4)), None, "float64"),
        (np.zeros((32, 32, 3), np.uint8), np.ones((3, 1), np.uint8), r"\(32, 32, 3\)"),
        (None, np.ones((11, 1), np.uint8), "12 images and 11 labels"),
        (None, np.full((12, 1), 11, np.uint8), r"found 11\.\.11"),
        (None, np.full((12, 1), -1, np.int16), r"found -1\.\.-1"),
        (None, np.full((12, 1), np.nan), "float64; there must be an"),
    ],
)
def test_svhn_of_other_arrays_gets_one_line(tmp_path, images, labels, message):
    write_svhn(tmp_path, images=images, labels=labels)
    with pytest.raises(UserError, match=message) as refused:
        load_svhn(tmp_path, "train")
    one_line(refused)


def test_svhn_that_is_missing_or_cut_at_any_place_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no test_32x32") as refused:
        load_svhn(tmp_path, "test")
    write_svhn(tmp_path, images=np.zeros((32, 32, 3, 1), np.uint8))
    path = tmp_path / "train_32x32.mat"
    content = path.read_bytes()
    for length in range(0, len(content), 9):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as refused:
            load_svhn(tmp_path, "train")
        one_line(refused, str(path))
    savemat(path, {"y": np.ones((1, 1), np.uint8)})
    with pytest.raises(UserError, match="lacks the array X"):
        load_svhn(tmp_path, "train")


# --- STL-10 ---------------------------------------------------------------------------------------------------


def write_stl10(folder, split="train", count=10, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    upright = RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
    (folder / f"{split}_X.bin").write_bytes(upright.transpose(0, 1, 3, 2).tobytes())
    (folder / f"{split}_y.bin").write_bytes(bytes(labels if labels is not None else range(1, count + 1)))
    return upright


def test_stl10_stands_upright_and_comes_at_the_size_of_the_benchmark(tmp_path):
    upright = write_stl10(tmp_path / "stl10_binary")
    found = load_stl10(tmp_path, "train")
    assert np.array_equal(found.images.numpy(), upright)
    assert found.labels.tolist() == list(range(10)) and found.classes == STL10_CLASSES
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("\n".join("abcdefghij"))
    write_stl10(tmp_path / "stl10_binary", "test", 4)
    splits = load_splits("stl10", root=str(tmp_path), validation=2, resize=32)
    assert splits.classes == tuple("abcdefghij")
    assert splits.image_shape == (3, 32, 32)
    assert any("96 x 96 to 32 x 32" in note for note in splits.notes)
    official = Image.fromarray(upright[3].transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(splits.train.images[3].permute(1, 2, 0).numpy(), np.asarray(official))


def test_stl10_that_is_damaged_gets_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*train_X\.bin"):
        load_stl10(tmp_path, "train")
    write_stl10(tmp_path, count=2)
    for labels, message in ((b"\1", "2 train images and 1 labels"), (b"\0\1", r"found 0\.\.1"), (b"\1\13", "found 1")):
        (tmp_path / "train_y.bin").write_bytes(labels)
        with pytest.raises(UserError, match=message) as refused:
            load_stl10(tmp_path, "train")
        one_line(refused)
    path = tmp_path / "train_X.bin"
    for content in (path.read_bytes()[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cut short"):
            load_stl10(tmp_path, "train")


# --- Tiny ImageNet --------------------------------------------------------------------------------------------


def tiny_imagenet(**changes):
    values = {"classes": ["n1", "n2"]}
    for part, count in (("train", 6), ("val", 2)):
        values[f"images_{part}"] = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
        values[f"labels_{part}"] = torch.arange(count) % 2
    return values | changes


def test_tiny_imagenet_is_read_from_its_file_of_tensors(tmp_path):
    content = tiny_imagenet()
    torch.save(content, tmp_path / "tinyimagenet.pt")
    splits = load_splits("tiny-imagenet", root=str(tmp_path), validation=2)
    assert torch.equal(splits.test.images, content["images_val"])
    assert (len(splits.train), splits.classes) == (4, ("n1", "n2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "does not hold classes"),
        ({"classes": []}, "does not hold"),
        (tiny_imagenet(classes=["n1"]), r"found 0\.\.1"),
        (tiny_imagenet(images_train=torch.zeros(6, 3, 64, 64)), "uint8"),
        (tiny_imagenet(labels_train=torch.zeros(5)), "one per image"),
        (tiny_imagenet(labels_train=[0] * 6), "other things"),
        ({"classes": torch.nn.Linear(1, 1)}, "nothing was executed"),
    ],
)
def test_other_files_of_that_name_get_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "tinyimagenet.pt")
    with pytest.raises(UserError, match=message) as refused:
        load_tiny_imagenet(tmp_path, "train")
    one_line(refused, "tinyimagenet.pt")
    (tmp_path / "tinyimagenet.pt").unlink()
    with pytest.raises(UserError, match="holds no tinyimagenet"):
        load_tiny_imagenet(tmp_path, "train")


# --- Resizing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_pillows_on_bytes(channels):
    pixels = RNG.integers(0, 256, (3, channels, 28, 20), dtype=np.uint8)
    data = images_from_arrays(pixels, [0, 1, 2])
    resized = resize_images(data, 32)
    assert resized.image_shape == (channels, 32, 32) and torch.equal(resized.labels, data.labels)
    image = Image.fromarray(pixels[1].transpose(1, 2, 0).squeeze()).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(resized.images[1].permute(1, 2, 0).numpy().squeeze(), np.asarray(image))
    assert resize_images(resized, 32) is resized


def test_sides_and_channels_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="need 1 or 3"):
        resize_images(images_from_arrays(np.zeros((1, 2, 4, 4), np.uint8), [0]), 8)
    with pytest.raises(UserError, match="and a side"):
        load_splits("digits", resize=0)


def test_statistics_are_those_of_the_resized_images():
    plain, large = load_splits("digits"), load_splits("digits", resize=16)
    assert large.image_shape == (1, 16, 16) and large.std != plain.std
