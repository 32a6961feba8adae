"""One reader, one preprocessing: what is learnt from a file is what is served from it."""

import numpy as np
import pytest
import torch
from photos import BROKEN, CLASSES, PHOTOS, save_as, scene
from PIL import Image

from tenfold.data import Preprocessing, find_image_files, find_unreadable, load_splits, read_image, read_images
from tenfold.data.folder import require_readable
from tenfold.errors import UserError


def test_every_photo_shows_its_class_when_it_is_read(photos):
    files = find_image_files(photos)
    assert len(files) == PHOTOS and files.classes == CLASSES
    assert "1 .txt" in files.notes[0] and "1 hidden" in files.notes[0]
    kinds = set()
    for path, label in zip(files.paths, files.labels, strict=True):
        if str(path).endswith(BROKEN):
            continue
        image = read_image(path)
        with Image.open(path) as raw:
            kinds.add((raw.format, raw.mode, raw.getexif().get(0x0112)))
        assert image.mode == "RGB"
        grey = np.asarray(image.convert("L"), np.float32)
        height, width = grey.shape
        across = grey[:, : width // 2].mean() - grey[:, width // 2 :].mean()
        down = grey[: height // 2].mean() - grey[height // 2 :].mean()
        seen = "left" if across > 50 else "top" if down > 50 else "even"
        assert (seen, grey.mean() > 150) == (CLASSES[label], label == 0), path
    assert len(kinds) >= 16  # eight orientations, and the modes


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (10, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("RGBA", (100, 0, 0, 128), (177, 127, 127)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 0x80FF, (0x80, 0x80, 0x80)),
    ],
)
def test_modes_become_rgb_by_the_stated_rules(tmp_path, mode, value, expected):
    image = Image.new(mode, (3, 2), value)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    assert read_image(path).getpixel((1, 1)) == expected


def test_palettes_with_a_transparent_colour_and_sixteen_bit_pgm(tmp_path):
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    assert [read_image(tmp_path / "palette.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (10, 200, 30)]
    (tmp_path / "deep.pgm").write_bytes(b"P5 1 1 65535\n\x80\xff")
    assert read_image(tmp_path / "deep.pgm").getpixel((0, 0)) == (0x80,) * 3


def test_what_has_no_range_or_is_no_image_gets_one_line(tmp_path, monkeypatch):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.ones((2, 2), np.int32)).save(tmp_path / "int.tif")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    Image.new("L", (60, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in [*names, "missing.png"]:
        with pytest.raises(UserError, match=f"cannot read the image .*{name}") as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in find_unreadable([tmp_path / name for name in names])) == names


def test_a_damaged_exif_block_does_not_lose_the_pixels(tmp_path):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (8, 8), (200, 0, 0)).save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(path).size == (8, 8)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order'"])
def test_damaged_arrays_get_one_line(tmp_path, content):
    path = tmp_path / "images.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read the array"):
        list(read_images([str(path)], Preprocessing.squeezed((1, 8, 8))))


def test_an_array_whose_header_asks_for_more_than_there_is_gets_one_line(tmp_path):
    path = tmp_path / "images.npy"
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000, 8), }"
    content = header.ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content.encode() + b"\x01" * 64)
    with pytest.raises(UserError, match="cannot read the array"):
        list(read_images([str(path)], Preprocessing.squeezed((1, 8, 8))))


def test_all_bad_files_are_named_at_once_and_left_out_only_when_asked(photos):
    files = find_image_files(photos)
    with pytest.raises(UserError, match="1 of the 200 images") as error:
        require_readable(files, photos, leave_out=False)
    assert BROKEN in str(error.value) and "--data.unreadable leave-out" in str(error.value)
    kept = require_readable(files, photos, leave_out=True)
    assert len(kept) == PHOTOS - 1 and BROKEN in kept.notes[-1]


# --- Preprocessing ---


@pytest.mark.parametrize("side", [24, 25])
def test_evaluation_and_prediction_see_the_same_pixels(photos, side):
    splits = load_splits("folder", root=str(photos), unreadable="leave-out", image_size=side)
    batches = list(splits.test_batches(16))
    paths = [str(path) for path in splits.test.paths]
    predicted = torch.stack([image for _, image in read_images(paths, splits.preprocessing)])
    assert torch.equal(torch.cat([images for images, _, _ in batches]), splits.preprocessing.normalize(predicted))


def test_crop_is_imagenets_evaluation_and_squeeze_is_pillows_filter():
    from torchvision.transforms import v2

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8))
    cropped = Preprocessing.cropped(28, (0.5,) * 3, (0.5,) * 3)
    expected = v2.Compose([v2.PILToTensor(), v2.Resize(32, antialias=True), v2.CenterCrop(28)])(image)
    assert torch.equal(cropped.prepare(image), expected)
    squeezed = Preprocessing.squeezed((3, 20, 30)).prepare(image)
    assert torch.equal(squeezed.permute(1, 2, 0), torch.from_numpy(np.array(image.resize((30, 20), 2))))
    assert Preprocessing.squeezed((1, 40, 90)).prepare(image).shape == (1, 40, 90)
    for size in ((50, 30), (30, 50), (9, 9)):
        flat = Preprocessing.cropped(16, (0.5,) * 3, (0.5,) * 3).random_crop()(Image.new("RGB", size, (5, 6, 7)))
        assert (tuple(flat.shape), flat.dtype, flat[:, 8, 8].tolist()) == ((3, 16, 16), torch.uint8, [5, 6, 7])


def test_a_saved_preprocessing_comes_back_and_damaged_ones_are_refused():
    made = Preprocessing.cropped(224, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), "bicubic")
    assert Preprocessing.from_dict(made.to_dict()) == made
    for change in ({"mean": [0.1]}, {"std": [0, 1, 1]}, {"size": "x"}, {"more": 1}, {"resize_side": None}):
        with pytest.raises(UserError) as error:
            Preprocessing.from_dict(made.to_dict() | change)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        Preprocessing.from_dict([])


# --- Splits of folders ---


def test_two_hundred_photos_are_split_without_settings_and_with_numbers(photos):
    splits = load_splits("folder", root=str(photos), unreadable="leave-out")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [144, 16, 39]
    assert len({path for part in parts for path in part.paths}) == PHOTOS - 1
    assert all(set(part.labels) == {0, 1, 2} for part in parts)
    text = " ".join(splits.notes)
    assert "1 of the 200 images" in text and "144 images train, 16 validate, 39 are the test" in text
    with pytest.raises(UserError, match=r"--data.validation 1000 leaves none.*--data.validation 1\d"):
        load_splits("folder", root=str(photos), unreadable="leave-out", validation=1000)


def grow(folder, **classes):
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            save_as("jpg", scene(0, 8, 8, np.random.default_rng(number)), folder / name / f"{number}", number)


def test_a_class_folder_that_is_missing_is_named(tmp_path):
    grow(tmp_path / "train", cat=3, dog=3, eel=3)
    grow(tmp_path / "val", cat=1, dog=1)
    with pytest.raises(UserError, match=r"val lacks the class folder eel"):
        load_splits("folder", root=str(tmp_path))
    grow(tmp_path / "val", eel=1, fox=1)
    with pytest.raises(UserError, match=r"train lacks the class folder fox"):
        load_splits("folder", root=str(tmp_path))


def test_given_splits_are_taken_as_they_are_and_said(tmp_path):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        grow(tmp_path / part, cat=count, dog=count)
    splits = load_splits("folder", root=str(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [8, 4, 6]
    assert "validation images are those of val/" in " ".join(splits.notes)


def test_rare_classes_train_and_their_absence_elsewhere_is_said(tmp_path):
    grow(tmp_path, cat=20, dog=20, eel=1)
    splits = load_splits("folder", root=str(tmp_path))
    assert 2 in splits.train.labels
    assert "No validation image is of the class eel." in splits.notes


def test_a_folder_may_be_squeezed_instead_of_cropped(photos):
    splits = load_splits("folder", root=str(photos), unreadable="leave-out", resize=20, augment="flip")
    assert (splits.image_shape, splits.preprocessing.resize) == ((3, 20, 20), "squeeze")
    images, _ = next(iter(splits.training_batches(4, seed=0)))
    assert images.shape == (4, 3, 20, 20)
    with pytest.raises(UserError, match="one, not both"):
        load_splits("folder", root=str(photos), resize=20, image_size=20)
