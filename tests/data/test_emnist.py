"""EMNIST's files: transposed images, letters from 1, classes from the mapping."""

import gzip
import struct

import numpy as np
import pytest

from tenfold.data import load_emnist, load_splits
from tenfold.errors import UserError


def write(folder, split="letters", part="train", count=30, labels=None, mapping=None):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    upright = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.array(labels if labels is not None else [n % 26 + 1 for n in range(count)], dtype=np.uint8)
    stem = folder / f"emnist-{split}-{part}"
    images = struct.pack(">4i", 2051, count, 28, 28) + upright.transpose(0, 2, 1).tobytes()
    stem.with_name(f"{stem.name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    stem.with_name(f"{stem.name}-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">2i", 2049, count) + labels.tobytes())
    )
    text = mapping or "".join(f"{n} {64 + n} {96 + n}\n" for n in range(1, 27))
    (folder / f"emnist-{split}-mapping.txt").write_text(text)
    return upright


def test_images_stand_upright_and_letters_count_from_a(tmp_path):
    upright = write(tmp_path / "gzip")
    write(tmp_path / "gzip", part="test", count=26)
    found = load_emnist(tmp_path, "letters", "train")
    assert np.array_equal(found.images[:, 0].numpy(), upright)
    assert found.classes[:2] == ("A/a", "B/b")
    assert found.labels[:3].tolist() == [0, 1, 2]
    splits = load_splits("emnist-letters", root=str(tmp_path), validation=5)
    assert (len(splits.train), len(splits.test)) == (25, 26)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0] * 30}, "not in its mapping"),
        ({"labels": [27] * 30}, "not in its mapping"),
        ({"mapping": "1 65 97\n2 x\n"}, "not a mapping"),
        ({"mapping": "\n"}, "not a mapping"),
    ],
)
def test_labels_without_a_class_get_one_line(tmp_path, options, message):
    write(tmp_path, **options)
    with pytest.raises(UserError, match=message):
        load_emnist(tmp_path, "letters", "train")
    with pytest.raises(UserError, match="has no split"):
        load_emnist(tmp_path, "numbers", "train")
    with pytest.raises(UserError, match="holds no emnist-balanced"):
        load_emnist(tmp_path, "balanced", "train")
