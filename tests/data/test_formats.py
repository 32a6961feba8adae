"""Readers of image formats: every pixel and label where it belongs, and one clear line for every damaged file."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy.io import savemat

from tenfold.data import (
    LabelledImages,
    channel_statistics,
    digits,
    find_data,
    find_image_files,
    find_imagenet,
    has_idx,
    images_from_arrays,
    load_cifar,
    load_idx,
    load_image_array,
    read_idx,
    split_indices,
)
from tenfold.errors import UserError

RNG = np.random.default_rng(0)


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx_split(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


def assert_one_line(error: pytest.ExceptionInfo[UserError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# --- IDX ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=6)),
    compressed=st.booleans(),
)
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, compressed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip"
    path.write_bytes(gzip.compress(idx_bytes(values)) if compressed else idx_bytes(values))
    np.testing.assert_array_equal(read_idx(path), values, strict=True)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_idx_cut_at_any_byte_is_a_user_error(tmp_path: Path, compressed: bool) -> None:
    content = idx_bytes(RNG.integers(0, 256, (3, 5, 4), dtype=np.uint8))
    content = gzip.compress(content) if compressed else content
    path = tmp_path / "images"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            read_idx(path)
        assert_one_line(error, path)


@settings(max_examples=150, deadline=None)
@given(compressed=st.booleans(), place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_idx_with_a_changed_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, compressed: bool, place: int, value: int
) -> None:
    content = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    damaged = bytearray(gzip.compress(content, mtime=0) if compressed else content)
    damaged[place % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(damaged)
    try:
        assert read_idx(path).dtype == np.uint8
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x00\x0d\x01" + struct.pack(">If", 1, 1.0),  # floats
        b"\x00\x00\x08\x00",  # no dimensions
        b"\x89PNG\r\n\x1a\n" + bytes(20),
        idx_bytes(np.zeros((2, 2), np.uint8)) + b"\x00",  # longer than it says
        b"\x00\x00\x08\x03" + struct.pack(">III", 0, 2**32 - 1, 2**32 - 1),  # empty, and beyond any array
    ],
    ids=["floats", "no dimensions", "png", "too long", "empty"],
)
def test_idx_with_a_wrong_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_idx(path)
    assert_one_line(error, path)


@pytest.mark.parametrize("place", [".", "images", "FashionMNIST/raw", "FashionMNIST"])
def test_idx_split_is_found_in_every_layout(tmp_path: Path, place: str) -> None:
    images = RNG.integers(0, 256, (4, 3, 5), dtype=np.uint8)
    write_idx_split(tmp_path / place, images, np.array([9, 0, 3, 1], np.uint8))
    data = load_idx(tmp_path, "test")
    assert data.labels.tolist() == [9, 0, 3, 1]
    assert data.image_shape == (1, 3, 5)
    np.testing.assert_array_equal(data.images[:, 0].numpy(), images)
    transposed = load_idx(tmp_path, "test", transposed=True)
    np.testing.assert_array_equal(transposed.images[:, 0].numpy(), images.transpose(0, 2, 1))
    assert has_idx(tmp_path, "test")
    assert not has_idx(tmp_path, "train")


def test_idx_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    images = np.zeros((3, 2, 2), np.uint8)
    write_idx_split(tmp_path, images, np.zeros(2, np.uint8))
    with pytest.raises(UserError, match="do not belong together"):
        load_idx(tmp_path, "test")
    write_idx_split(tmp_path, images, np.array([0, 10, 1], np.uint8))
    with pytest.raises(UserError, match=r"labels must lie in 0\.\.9; found 0\.\.10"):
        load_idx(tmp_path, "test")


def test_missing_files_name_the_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError) as idx:
        load_idx(tmp_path, "train")
    assert_one_line(idx, tmp_path, "train-images-idx3-ubyte", "FashionMNIST/raw")
    with pytest.raises(UserError) as cifar:
        load_cifar(tmp_path, "train", classes=10)
    assert_one_line(cifar, tmp_path, "cifar-10-batches-py/data_batch_1", "cifar-10-batches-bin/data_batch_1.bin")
    with pytest.raises(UserError) as imagenet:
        find_imagenet(tmp_path, "train")
    assert_one_line(imagenet, tmp_path, "train/<wnid>/")
    with pytest.raises(UserError) as folder:
        find_image_files(tmp_path / "nowhere")
    assert_one_line(folder, tmp_path / "nowhere")


def test_real_fashion_mnist_test_split() -> None:
    if not has_idx_in_environment():
        pytest.skip("TENFOLD_DATA names no folder with Fashion-MNIST's test split")
    data = load_idx(None, "test")
    assert tuple(data.images.shape) == (10_000, 1, 28, 28)
    assert data.labels.bincount().tolist() == [1_000] * 10


def has_idx_in_environment() -> bool:
    return "TENFOLD_DATA" in os.environ and has_idx(None, "test")


# --- CIFAR -------------------------------------------------------------------------------------------------------


def test_cifar_binary_planes(tmp_path: Path) -> None:
    """A record is the label, then 32 x 32 red, green and blue values, row by row."""
    red, green, blue = np.full((32, 32), 10, np.uint8), np.zeros((32, 32), np.uint8), np.full((32, 32), 30, np.uint8)
    green[1, 2] = 200
    record = bytes([7]) + red.tobytes() + green.tobytes() + blue.tobytes()
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(record + bytes([1]) + bytes(3072))
    data = load_cifar(tmp_path, "test", classes=10)
    assert data.labels.tolist() == [7, 1]
    assert data.classes[7] == "horse"
    assert data.images[0, :, 1, 2].tolist() == [10, 200, 30]
    assert data.images[0, :, 2, 1].tolist() == [10, 0, 30]
    assert int(data.images[1].sum()) == 0

    for length in (0, 1, 3072, 3074):
        (folder / "test_batch.bin").write_bytes((record * 2)[:length])
        with pytest.raises(UserError) as error:
            load_cifar(tmp_path, "test", classes=10)
        assert_one_line(error, folder / "test_batch.bin", f"{length} bytes")
    (folder / "test_batch.bin").write_bytes(bytes([10]) + record[1:])
    with pytest.raises(UserError, match=r"0\.\.9"):
        load_cifar(tmp_path, "test", classes=10)


def test_cifar_100_binary_gives_the_fine_label(tmp_path: Path) -> None:
    (tmp_path / "test.bin").write_bytes(bytes([3, 77]) + bytes(3072))
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)))
    data = load_cifar(tmp_path, "test", classes=100)
    assert data.labels.tolist() == [77]
    assert data.classes[77] == "name77"


@pytest.mark.parametrize("as_bytes", [False, True], ids=["str keys", "bytes keys"])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_cifar_python_training_batches(tmp_path: Path, as_bytes: bool, protocol: int) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
    for number in range(5):
        batch = {"data": pixels[2 * number : 2 * number + 2], "labels": [number, 9 - number], "batch_label": "one"}
        content = {key.encode(): value for key, value in batch.items()} if as_bytes else batch
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(content, protocol=protocol))
    data = load_cifar(tmp_path, "train", classes=10)
    assert data.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    np.testing.assert_array_equal(data.images.numpy(), pixels.reshape(10, 3, 32, 32))

    (folder / "data_batch_3").unlink()
    with pytest.raises(UserError) as error:
        load_cifar(tmp_path, "train", classes=10)
    assert_one_line(error, folder / "data_batch_3")


def test_cifar_100_python_gives_the_fine_label_and_its_names(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3072), np.uint8)
    (tmp_path / "test").write_bytes(pickle.dumps({"data": pixels, "fine_labels": [99, 4], "coarse_labels": [1, 2]}))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"fine%d" % i for i in range(100)]}))
    data = load_cifar(tmp_path, "test", classes=100)
    assert data.labels.tolist() == [99, 4]
    assert data.classes[4] == "fine4"


def test_truncated_cifar_pickle_is_a_user_error(tmp_path: Path) -> None:
    content = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}, protocol=2)
    path = tmp_path / "test_batch"
    for length in [*range(0, 200), *range(200, len(content), 101), *range(len(content) - 60, len(content))]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            load_cifar(tmp_path, "test", classes=10)
        assert str(path) in str(error.value)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"data": PIXELS},
        {"data": PIXELS, "labels": [1]},
        {"data": PIXELS, "labels": 5},
        {"data": PIXELS, "labels": ["cat", "dog"]},
        {"data": PIXELS, "labels": [[1], [2]]},
        {"data": PIXELS.astype(np.float32), "labels": [1, 2]},
        {"data": PIXELS[:, 1:], "labels": [1, 2]},
        {"data": PIXELS, "labels": [0, -1]},
        {b"\xff": PIXELS},
    ],
    ids=str,
)
def test_cifar_pickle_of_something_else_is_a_user_error(tmp_path: Path, content: object) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError) as error:
        load_cifar(tmp_path, "test", classes=10)
    assert_one_line(error)


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.victim}'",)


def test_malicious_cifar_pickle_does_not_execute(tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    attack = pickle.dumps({"data": PIXELS, "labels": [0, 1], "extra": Malicious(victim)})
    (tmp_path / "test_batch").write_bytes(attack)
    with pytest.raises(UserError, match="nothing was executed"):
        load_cifar(tmp_path, "test", classes=10)
    assert not victim.exists()
    pickle.loads(attack)
    assert victim.exists(), "the attack itself must work, or this test shows nothing"


# --- Folders -----------------------------------------------------------------------------------------------------


def save_image(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_folders_are_numbered_by_their_sorted_names(tmp_path: Path) -> None:
    for name, level in (("b/1.png", 20), ("a/sub/2.PNG", 10), ("b/0.png", 30)):
        save_image(tmp_path / name, Image.new("RGB", (2, 2), (level, 0, 0)))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    files = find_image_files(tmp_path)
    assert files.classes == ("a", "b")
    assert [path.name for path in files.paths] == ["2.PNG", "0.png", "1.png"]
    assert [(image.getpixel((0, 0))[0], label) for image, label in map(files.__getitem__, range(3))] == [
        (10, 0),
        (30, 1),
        (20, 1),
    ]
    assert files.subset([2, 0]).labels == (1, 0)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_cut_image_names_its_file_when_it_is_read(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for name in "ab":
        save_image(tmp_path / name / f"image.{ending}", noise)
    broken = tmp_path / "b" / f"image.{ending}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    files = find_image_files(tmp_path)
    files[0]
    with pytest.raises(UserError) as error:
        files[1]
    assert_one_line(error, broken)


def test_folders_that_are_no_classifier_are_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "only" / "image.png", Image.new("L", (2, 2)))
    with pytest.raises(UserError) as one:
        find_image_files(tmp_path)
    assert_one_line(one, tmp_path, "1 class folders")
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError) as empty:
        find_image_files(tmp_path)
    assert_one_line(empty, tmp_path / "void", "no images")


# --- ImageNet ----------------------------------------------------------------------------------------------------


@pytest.fixture
def flat_imagenet(tmp_path: Path) -> Path:
    """Three leaves whose ids are not in the order of their wnids, and a group of them, as in the kit."""
    rows = [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (4, "n00", 3)]
    synsets = np.zeros(len(rows), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    synsets[:] = rows
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    savemat(kit / "meta.mat", {"synsets": synsets})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n2\n1\n")
    for number in range(1, 5):
        save_image(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", Image.new("RGB", (2, 2)))
    return tmp_path


def test_flat_imagenet_labels_are_ranks_of_sorted_wnids(flat_imagenet: Path) -> None:
    files = find_imagenet(flat_imagenet, "val")
    assert files.classes == ("n01", "n02", "n03")
    assert files.labels == (2, 1, 0, 2)
    assert [path.name[-10:] for path in files.paths] == [f"{number:05d}.JPEG" for number in range(1, 5)]


def test_flat_and_sorted_imagenet_agree(flat_imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    flat = find_imagenet(flat_imagenet, "val")
    root = tmp_path_factory.mktemp("sorted")
    for path, label in zip(flat.paths, flat.labels, strict=True):
        save_image(root / "val" / flat.classes[label] / path.name, Image.new("RGB", (2, 2)))
    by_folder = find_imagenet(root, "val")
    assert by_folder.classes == flat.classes
    assert {p.name: n for p, n in zip(by_folder.paths, by_folder.labels, strict=True)} == {
        p.name: n for p, n in zip(flat.paths, flat.labels, strict=True)
    }


@pytest.mark.parametrize("truth", ["1\n2\n3\n", "1\n2\n3\n4\n", "1\n2\n3\n99\n", "1\n2\n3\nx\n"])
def test_flat_imagenet_with_a_wrong_ground_truth_is_refused(flat_imagenet: Path, truth: str) -> None:
    kit = flat_imagenet / "ILSVRC2012_devkit_t12"
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    with pytest.raises(UserError) as error:
        find_imagenet(flat_imagenet, "val")
    assert_one_line(error, flat_imagenet)


def test_flat_imagenet_with_a_cut_or_missing_kit_is_refused(flat_imagenet: Path) -> None:
    kit = flat_imagenet / "ILSVRC2012_devkit_t12"
    meta = kit / "data" / "meta.mat"
    content = meta.read_bytes()
    for length in range(0, len(content) - 8, 7):
        meta.write_bytes(content[:length])
        with pytest.raises(UserError) as error:
            find_imagenet(flat_imagenet, "val")
        assert_one_line(error, kit)
    kit.rename(flat_imagenet / "elsewhere")
    with pytest.raises(UserError, match="ILSVRC2012_devkit_t12"):
        find_imagenet(flat_imagenet, "val")


# --- Arrays ------------------------------------------------------------------------------------------------------


def test_arrays_of_bytes_and_of_fractions_give_the_same_images() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    labels = np.array([2, 0, 1, 2], np.uint8)
    data = images_from_arrays(pixels, labels)
    assert data.classes == ("0", "1", "2")
    assert data.image_shape == (1, 8, 8)
    for dtype in (np.float16, np.float32, np.float64):
        again = images_from_arrays((pixels / 255).astype(dtype), labels.tolist(), ["a", "b", "c"])
        assert torch.equal(again.images, data.images)
    assert data.subset(torch.tensor([3, 1])).labels.tolist() == [2, 0]


GREY = np.zeros((2, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 3, 3), np.nan), [0, 1], "NaN"),
        (np.full((2, 3, 3), np.inf), [0, 1], "infinite"),
        (np.full((2, 3, 3), 1.5), [0, 1], r"\[0, 1\]; found 1.5"),
        (np.full((2, 3, 3), -0.5), [0, 1], r"\[0, 1\]; found -0.5"),
        (GREY.astype(np.int64), [0, 1], "uint8.*int64"),
        (GREY.astype(object), [0, 1], "uint8.*object"),
        (GREY[0], [0, 1], "uint8"),
        (GREY, [0.0, 1.0], "integers; got float64"),
        (GREY, ["a", "b"], "integers"),
        (GREY, [True, False], "integers; got bool"),
        (GREY, [0, 1, 1], "2 int64 class indices"),
        (GREY, [[0], [1]], "2 int64 class indices"),
        (GREY, [0, -1], r"found -1\.\.0"),
        (GREY[:0], np.zeros(0, int), "no images"),
    ],
)
def test_wrong_arrays_are_refused(images: np.ndarray, labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        images_from_arrays(images, labels)
    assert_one_line(error)


def test_label_without_a_class_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.\.1; found 0\.\.2"):
        images_from_arrays(GREY, [0, 2], classes=["a", "b"])


def test_array_files_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", GREY)
    np.testing.assert_array_equal(load_image_array(tmp_path / "good.npy"), GREY)
    victim = tmp_path / "executed"
    np.save(tmp_path / "objects.npy", np.array([Malicious(victim)], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "several.npz", GREY, GREY)
    for name in ("objects.npy", "cut.npy", "zip.npy", "several.npz", "missing.npy"):
        with pytest.raises(UserError) as error:
            load_image_array(tmp_path / name)
        assert_one_line(error, tmp_path / name)
    assert not victim.exists()


def test_channel_statistics_agree_with_torch() -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (7, 3, 5, 4), dtype=np.uint8))
    images[:, 1] //= 3
    mean, std = channel_statistics(LabelledImages(images, torch.zeros(7, dtype=torch.int64), ("a",)))
    scaled = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean((0, 2, 3)), rtol=0, atol=1e-7)
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std((0, 2, 3), correction=0), rtol=0, atol=1e-7)


def test_constant_channels_have_deviation_one() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1).expand(2, 256, 3, 3).contiguous()
    _, std = channel_statistics(LabelledImages(images, torch.zeros(2, dtype=torch.int64), ("a",)))
    assert std == (1.0,) * 256


def test_digits_are_the_embedded_ones() -> None:
    data = digits()
    assert tuple(data.images.shape) == (1797, 1, 8, 8)
    assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_find_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    with pytest.raises(UserError, match="TENFOLD_DATA") as error:
        find_data(None)
    assert_one_line(error)
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path))
    assert find_data(None) == tmp_path
    (tmp_path / "other").mkdir()
    assert find_data(tmp_path / "other") == tmp_path / "other"
    with pytest.raises(UserError, match="does not exist"):
        find_data(tmp_path / "nowhere")


@given(
    n=st.integers(1, 60), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.none() | st.integers(0, 9)
)
def test_split_indices_are_disjoint_and_of_the_sizes(n: int, cuts: list[int], seed: int | None) -> None:
    if sum(cuts) > n:
        with pytest.raises(UserError):
            split_indices(n, cuts, seed=seed)
        return
    parts = split_indices(n, cuts, seed=seed)
    assert [len(part) for part in parts] == cuts
    joined = torch.cat(parts)
    assert len(joined.unique()) == len(joined)
    assert int(joined.min()) >= 0
    assert int(joined.max()) < n
    assert all(torch.equal(a, b) for a, b in zip(parts, split_indices(n, cuts, seed=seed), strict=True))
