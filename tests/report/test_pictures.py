"""Pictures: only whole PNG files of bounded size, and grids whose every pixel is where it belongs."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tenfold.errors import UserError
from tenfold.report.pictures import image_grid, picture
from tenfold.results import PICTURE_BYTES, Picture, Results


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def encoded(content):
    return base64.b64encode(content).decode()


def png_of(width, height):
    """A PNG whose header promises a size that the file need not hold."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


GOOD = image_grid(np.zeros((1, 1, 4, 4), np.uint8))


def as_jpeg():
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no base64!", "not base64"),
        ("é", "not base64"),
        ("", "not a whole PNG"),
        (encoded(b"<svg onload=alert(1)>"), "not a whole PNG"),
        (encoded(as_jpeg()), "not a whole PNG"),
        (encoded(GOOD[:-20]), "not a whole PNG"),
        (encoded(GOOD[:50] + bytes([GOOD[50] ^ 255]) + GOOD[51:]), "not a whole PNG"),
        (encoded(png_of(100_000, 100_000)), "not a whole PNG"),  # Pillow's own limit
        (encoded(png_of(8000, 8000)), "pixels; at most"),
        (encoded(GOOD + bytes(PICTURE_BYTES)), "bytes; at most"),
    ],
)
def test_only_a_whole_png_of_bounded_size_is_a_picture(data, message):
    with pytest.raises(ValidationError, match=message):
        Picture(id="p", title="t", data=data, alt="a")


def test_a_picture_says_what_is_to_be_seen():
    with pytest.raises(ValidationError, match="alt"):
        picture("p", "t", GOOD, alt=" ")


def test_pictures_survive_the_results_file(results_of):
    made = results_of(pictures=[picture("p", "A set", GOOD, alt="one black image", caption="c")])
    assert Results.model_validate_json(made.to_json()) == made


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_grid_is_where_it_belongs(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 3), dtype=np.uint8)
    sheet = decoded(image_grid(images, columns=2, scale=3))
    gap, (height, width) = 2, (12, 9)
    assert sheet.shape == (gap + 3 * (height + gap), gap + 2 * (width + gap), 3)
    for index, image in enumerate(images):
        top, left = gap + index // 2 * (height + gap), gap + index % 2 * (width + gap)
        found = sheet[top : top + height, left : left + width]
        expected = image.repeat(3, 1).repeat(3, 2).transpose(1, 2, 0)
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_fractions_are_drawn_and_what_lies_beyond_is_black_or_white():
    values = torch.tensor([-3.0, 0.0, 0.5, 1.0, 7.0], requires_grad=True).view(5, 1, 1, 1)
    assert decoded(image_grid(values, columns=5, scale=1))[2, 2::3, 0].tolist() == [0, 0, 128, 255, 255]
    two_channels = np.array([10, 20], np.uint8).reshape(1, 2, 1, 1)
    assert decoded(image_grid(two_channels, scale=1))[2, 2].tolist() == [15, 15, 15]


def test_names_stand_beside_the_images_and_make_room_for_themselves():
    images = np.zeros((4, 1, 4, 4), np.uint8)
    plain = decoded(image_grid(images, columns=2))
    named = decoded(image_grid(images, columns=2, row_names=["a long name", "b"], column_names=["1", "a wider one"]))
    assert named.shape[0] > plain.shape[0] and named.shape[1] > plain.shape[1] + 50
    assert (named[:18] != 255).any() and (named[:, :20] != 255).any()


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((0, 1, 4, 4), np.uint8), {}, "at least one"),
        (np.zeros((1, 4, 4), np.uint8), {}, "images must be"),
        (np.full((1, 1, 2, 2), np.nan), {}, "NaN"),
        (np.zeros((1, 1, 2, 2), np.uint8), {"row_names": ["a", "b"]}, "names of rows"),
        (np.zeros((1, 1, 2, 2), np.uint8), {"columns": 0}, "at least one column"),
    ],
)
def test_what_cannot_be_drawn_gets_one_line(images, options, message):
    with pytest.raises(UserError, match=message):
        image_grid(images, **options)
