"""Batches: complete, reproducible, resumable after every step, the same for any number of ranks and workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Generator, Tensor

from tenfold.data import (
    FileBatches,
    ImageFiles,
    LabelledImages,
    Preprocessing,
    RowBatches,
    TensorBatches,
    evaluation_batches,
    find_image_files,
    normalize,
    random_crop,
    random_flip,
)
from tenfold.errors import UserError

Batch = tuple[Tensor, Tensor]
PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
RGB: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
SMALL = Preprocessing.cropped(6, **RGB)


def numbered(n: int) -> LabelledImages:
    """Images whose label is their row number."""
    images = torch.randint(0, 256, (n, 1, 4, 5), generator=Generator().manual_seed(n)).to(torch.uint8)
    return LabelledImages(images, torch.arange(n), tuple(map(str, range(n))))


def augmented(data: LabelledImages, batch_size: int, seed: int = 3) -> TensorBatches:
    return TensorBatches(data, batch_size, seed=seed, augmentations=[random_crop(2), random_flip], **PLAIN)


def assert_equal_batches(actual: list[Batch], expected: list[Batch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[0], other[0])


def simulate_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setattr("tenfold.data.batches.rank", lambda: rank)
    monkeypatch.setattr("tenfold.data.batches.world_size", lambda: ranks)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        folder = root / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return find_image_files(root)


def file_batches(files: ImageFiles, workers: int = 0, seed: int = 5) -> FileBatches:
    return FileBatches(files, 2, seed=seed, transform=SMALL.random_crop(), workers=workers, **RGB)


# --- Order -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_gives_full_batches_without_repeats(n: int, batch_size: int, seed: int) -> None:
    data = numbered(n)
    batches = TensorBatches(data, batch_size, seed=seed, **PLAIN)
    size = min(batch_size, n)
    assert len(batches) == n // size
    for _ in range(2):
        given_batches = list(batches)
        assert [len(labels) for _, labels in given_batches] == [size] * len(batches)
        rows = torch.cat([labels for _, labels in given_batches])
        assert len(rows.unique()) == len(batches) * size
        torch.testing.assert_close(torch.cat([images for images, _ in given_batches]), data.images[rows] / 255)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def orders(seed: int, batch_size: int = 5) -> list[list[int]]:
        batches = TensorBatches(numbered(20), batch_size, seed=seed, **PLAIN)
        return [torch.cat([labels for _, labels in batches]).tolist() for _ in range(3)]

    torch.manual_seed(1)
    first = orders(7)
    torch.manual_seed(2)
    assert orders(7) == first
    assert orders(7, batch_size=4) == first
    assert first[0] != first[1] != first[2]
    assert all(order != other for order, other in zip(orders(8), first, strict=True))


def test_the_global_generator_is_left_alone(files: ImageFiles) -> None:
    before = torch.get_rng_state()
    list(augmented(numbered(9), 3))
    for workers in (0, 2):
        list(file_batches(files, workers))
    list(evaluation_batches(files, 3, transform=SMALL.prepare, **RGB))
    assert torch.equal(torch.get_rng_state(), before)


def test_accelerators_are_not_seeded(files: ImageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else dropout on a GPU would start from the last decoded image's seed in every step."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    list(file_batches(files))


# --- Resuming ----------------------------------------------------------------------------------------------------


def resumed(batches: TensorBatches | FileBatches, state: dict[str, int], count: int) -> list[Batch]:
    batches.load_state_dict(state)
    return [batch for batch, _ in zip(endless(batches), range(count), strict=False)]


def endless(batches: TensorBatches | FileBatches) -> Iterator[Batch]:
    while True:
        yield from batches


@pytest.mark.parametrize("kind", ["tensors", "files"])
def test_resuming_after_any_batch_goes_on_identically(files: ImageFiles, kind: str) -> None:
    def fresh() -> TensorBatches | FileBatches:
        return augmented(numbered(11), 3) if kind == "tensors" else file_batches(files)

    uninterrupted, states, expected = fresh(), [], []
    for batch, _ in zip(endless(uninterrupted), range(2 * len(uninterrupted) + 1), strict=False):
        expected.append(batch)
        states.append(uninterrupted.state_dict())
    assert states[:4] == [
        {"epoch": 0, "given": 1},
        {"epoch": 0, "given": 2},
        {"epoch": 1, "given": 0},
        {"epoch": 1, "given": 1},
    ]
    for done, state in enumerate(states, start=1):
        rest = expected[done:]
        assert_equal_batches(resumed(fresh(), state, len(rest)), rest)


def test_state_taken_ahead_by_workers_counts_what_was_given(files: ImageFiles) -> None:
    expected = [*(batches := file_batches(files)), *batches]
    ahead = file_batches(files, workers=2)
    iterator = iter(ahead)
    next(iterator)
    assert ahead.state_dict() == {"epoch": 0, "given": 1}
    assert_equal_batches(resumed(file_batches(files), ahead.state_dict(), 5), expected[1:])


# --- Ranks and workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensors", "files"])
def test_two_ranks_interleave_to_the_batches_of_one_process(
    files: ImageFiles, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two_epochs() -> list[Batch]:
        batches = augmented(numbered(13), 4) if kind == "tensors" else file_batches(files)
        return [*batches, *batches]

    expected = two_epochs()
    shares = []
    for rank in range(2):
        simulate_rank(monkeypatch, rank, 2)
        shares.append(two_epochs())
    interleaved = [
        tuple(torch.stack([one, other], 1).flatten(0, 1) for one, other in zip(first, second, strict=True))
        for first, second in zip(*shares, strict=True)
    ]
    assert_equal_batches(interleaved, expected)  # type: ignore[arg-type]


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_rank(monkeypatch, 0, 2)
    with pytest.raises(UserError, match="batch_size 3 is not a multiple of the 2 processes"):
        next(iter(augmented(numbered(9), 3)))
    with pytest.raises(UserError, match="batch_size must be at least 1; got 0"):
        augmented(numbered(9), 0)


def test_workers_do_not_matter(files: ImageFiles) -> None:
    alone, helped = file_batches(files), file_batches(files, workers=2)
    expected = [*alone, *alone]
    assert_equal_batches([*helped, *helped], expected)
    other_seed = list(file_batches(files, seed=6))
    assert not torch.equal(other_seed[0][0], expected[0][0])


def test_random_changes_differ_between_images_batches_and_epochs(files: ImageFiles) -> None:
    one_image = torch.randint(0, 256, (1, 1, 40, 40), generator=Generator().manual_seed(0)).to(torch.uint8)
    same = LabelledImages(one_image.expand(4, 1, 40, 40), torch.zeros(4, dtype=torch.int64), ("a",))
    in_memory = TensorBatches(same, 2, seed=0, augmentations=[random_crop(30)], **PLAIN)
    path = files.paths[0]
    on_disk = FileBatches(ImageFiles((path,) * 4, (0,) * 4, ("a",)), 2, seed=0, transform=SMALL.random_crop(), **RGB)
    for batches in (in_memory, on_disk):
        images = torch.cat([images for _ in range(2) for images, _ in batches])
        assert len(images.unique(dim=0)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_line_from_any_worker(tmp_path: Path, workers: int) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.png").write_bytes(b"no image")
    broken = find_image_files(tmp_path)
    transform = SMALL.prepare
    for batches in (
        FileBatches(broken, 1, seed=0, transform=transform, workers=workers, **RGB),
        evaluation_batches(broken, 1, transform=transform, workers=workers, **RGB),
    ):
        with pytest.raises(UserError, match=r"^cannot read the image .*broken\.png") as error:
            next(iter(batches))
        assert "\n" not in str(error.value)


# --- Evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
@pytest.mark.parametrize("kind", ["tensors", "files"])
def test_evaluation_shards_merge_by_index(
    files: ImageFiles, kind: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven images, so that with nine ranks some have none."""
    transform = SMALL.prepare
    if kind == "tensors":
        data: LabelledImages | ImageFiles = numbered(7)
        expected, labels = normalize(numbered(7).images, **PLAIN), torch.arange(7)
        options = PLAIN
    else:
        data, labels = files, torch.tensor(files.labels)
        expected = normalize(torch.stack([transform(files[i][0]) for i in range(7)]), **RGB)
        options = {"transform": transform, **RGB}
    merged = torch.full_like(expected, torch.nan)
    seen = []
    for rank in range(ranks):
        simulate_rank(monkeypatch, rank, ranks)
        for images, numbers, indices in evaluation_batches(data, 2, **options):
            assert len(indices) <= 2
            merged[indices] = images
            assert torch.equal(numbers, labels[indices])
            seen += indices.tolist()
    assert sorted(seen) == list(range(7))
    assert torch.equal(merged, expected)


def test_evaluation_of_files_needs_a_transform(files: ImageFiles) -> None:
    with pytest.raises(ValueError, match="transform"):
        next(evaluation_batches(files, 2, **RGB))


# --- Pixels ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_random_crop_agrees_with_a_loop(shape: tuple[int, int, int, int], padding: int, seed: int) -> None:
    images = torch.randint(1, 256, shape, generator=Generator().manual_seed(seed)).to(torch.uint8)
    cropped = random_crop(padding)(images, Generator().manual_seed(seed))
    assert (cropped.shape, cropped.dtype) == (images.shape, images.dtype)
    places = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=Generator().manual_seed(seed))
    for image, crop, (top, left) in zip(images, cropped, places.T.tolist(), strict=True):
        expected = torch.zeros_like(image)
        for row in range(shape[2]):
            for column in range(shape[3]):
                source_row, source_column = row + top - padding, column + left - padding
                if 0 <= source_row < shape[2] and 0 <= source_column < shape[3]:
                    expected[:, row, column] = image[:, source_row, source_column]
        assert torch.equal(crop, expected)


def test_random_crop_reaches_every_place_equally() -> None:
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 1
    counts = random_crop(1)(images, Generator().manual_seed(0)).sum(0)[0]
    assert int(counts.sum()) == 9000
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_random_flip_mirrors_half_of_the_images() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3).expand(4000, 1, 2, 3)
    flipped = random_flip(images, Generator().manual_seed(0))
    mirrored = (flipped == images.flip(-1)).all((1, 2, 3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert abs(int(mirrored.sum()) - 2000) < 160  # five standard deviations


def test_normalize_known_answers() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = normalize(images, (0.5, 0.2, 0.0), (0.5, 0.1, 0.25))
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 0.0, 4.0]), rtol=0, atol=1e-6)
    assert result.dtype == torch.float32
    assert images.flatten().tolist() == [0, 51, 255]


def test_rows_of_a_table_come_once_an_epoch_and_resume() -> None:
    columns = {"a": torch.arange(10), "b": torch.arange(20.0).view(10, 2)}
    batches = RowBatches(columns, torch.arange(10) * 2, 3, seed=1)
    epoch = list(batches)
    for inputs, targets in epoch:
        assert torch.equal(inputs["a"] * 2, targets)
        assert torch.equal(inputs["b"][:, 0], inputs["a"] * 2.0)
    assert len(torch.cat([targets for _, targets in epoch]).unique()) == 9
    again = RowBatches(columns, torch.arange(10) * 2, 3, seed=1)
    again.load_state_dict({"epoch": 0, "given": 2})
    assert torch.equal(next(iter(again))[1], epoch[2][1])
