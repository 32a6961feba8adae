"""Data: rendered rooms, own pairs of all kinds, KITTI and NYU by their layouts, LiDAR, and a look before training."""

import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.errors import TenfoldWarning, UserError
from tenfold.systems.full_skip_depth import (
    Augmentation,
    FrameArrays,
    FrameBatches,
    FrameFiles,
    drive_frames,
    examine,
    kitti_pairs,
    load_splits,
    nyu_frames,
    pairs_by_stem,
    pairs_of_csv,
    pairs_of_list,
    project_points,
    render_rooms,
    write_depth_png,
)
from tenfold.systems.full_skip_depth.sets.doctor import likely_scales, unit_problem
from tenfold.systems.full_skip_depth.sets.frames import evaluation_batches, read_photo
from tenfold.systems.full_skip_depth.sets.kitti import benchmark_images

random = np.random.default_rng(0)


def write_photo(path, height=48, width=64, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path, **options)


def write_depth(path, depth=None, scale=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = np.full((48, 64), 2.0, np.float32) + random.random((48, 64), np.float32) if depth is None else depth
    if path.suffix == ".png":
        write_depth_png(path, depth, scale)
    else:
        np.save(path, depth)
    return depth


def test_rooms_are_exact():
    rooms = render_rooms(3, height=24, width=32, boxes=1, seed=5)
    again = render_rooms(3, height=24, width=32, boxes=1, seed=5)
    assert torch.equal(rooms.images, again.images) and torch.equal(rooms.depths, again.depths)
    assert rooms.images.shape == (3, 3, 24, 32) and rooms.depths.min() >= 0.3 and rooms.depths.max() <= 10
    # A wall is a plane: the inverse depth of neighbouring pixels on it is linear.
    inverse = 1 / rooms.depths.double()
    bend = inverse[:, :, 2:] - 2 * inverse[:, :, 1:-1] + inverse[:, :, :-2]
    assert (bend.abs() < 1e-5).double().mean() > 0.8
    assert render_rooms(2, boxes=14).depths.std() > 0.3


def test_pairs_by_stem_and_what_has_no_partner(tmp_path):
    for n, kind in enumerate((".png", ".png")):
        write_photo(tmp_path / "images" / f"{n}.jpg")
        write_depth(tmp_path / "depth" / f"{n}{kind}")
    pairs, lonely = pairs_by_stem(tmp_path, focal=50.0)
    assert [pair.name for pair in pairs] == ["0", "1"] and pairs[0].focal == 50 and lonely.images == ()
    image, depth, focal = FrameFiles(pairs, depth_scale=1000)[0]
    assert image.shape == (3, 48, 64) and depth.min() >= 2 and depth.max() <= 3 and focal == 50
    write_photo(tmp_path / "images" / "2.png")
    with pytest.raises(UserError, match=r"1 images without depth and 0 depth maps .* the first is 2.png"):
        load_splits("pairs", str(tmp_path), depth_scale=1000)
    for n in (3, 4):
        write_photo(tmp_path / "images" / f"{n}.jpg")
        write_depth(tmp_path / "depth" / f"{n}.png")
    splits = load_splits("pairs", str(tmp_path), depth_scale=1000, skip_unpaired=True)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [2, 1, 1]
    assert splits.test.names == ["4"] and any("left out" in note for note in splits.notes)
    (tmp_path / "images" / "0.png").write_bytes((tmp_path / "images" / "2.png").read_bytes())
    with pytest.raises(UserError, match="two files for '0'"):
        pairs_by_stem(tmp_path)


def test_csv_stays_in_its_folder(tmp_path):
    write_photo(tmp_path / "a.png")
    write_depth(tmp_path / "a.npy")
    table = tmp_path / "list.csv"
    table.write_text("image,depth,split,focal\na.png,a.npy,train,70\na.png,,test,\n")
    parts = pairs_of_csv(table)
    assert parts["train"][0].focal == 70 and parts["test"][0].depth is None
    for text, words in (
        ("image,depth\n../x.png,a.npy\n", "leaves the folder"),
        ("image,depth\n/etc/passwd,a.npy\n", "leaves the folder"),
        ("image\na.png\n", "needs the columns"),
        ("image,depth\na.png\n", "line 2"),
        ("image,depth,focal\na.png,a.npy,-4\n", "focal length must be above 0"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=words):
            pairs_of_csv(table)


def test_split_lists(tmp_path):
    write_photo(tmp_path / "s" / "rgb_1.jpg")
    write_depth(tmp_path / "s" / "d.png")
    with gzip.open(tmp_path / "list.txt.gz", "wt") as file:
        file.write("/s/rgb_1.jpg /s/d.png 518.8579\ns/rgb_1.jpg None 518.8579")
    pairs = pairs_of_list(tmp_path / "list.txt.gz", [tmp_path], [tmp_path])
    assert [pair.depth is None for pair in pairs] == [False, True] and pairs[0].name == "s/rgb_1.jpg"
    five = tmp_path / "five.txt"
    five.write_text("s/rgb_1.jpg s/d.png 700 s/rgb_1.jpg s/d.png\n")
    assert len(pairs_of_list(five, [tmp_path], [tmp_path], right=True)) == 2
    five.write_text("s/rgb_1.jpg s/none.png 700\n")
    with pytest.raises(UserError, match=r"line 1: s/none.png is in none of"):
        pairs_of_list(five, [tmp_path], [tmp_path])


def test_kitti_by_its_layout(tmp_path):
    drive = "2011_09_26_drive_0001_sync"
    write_photo(tmp_path / f"2011_09_26/{drive}/image_02/data/0000000005.png", 370, 1226)
    truth = np.zeros((370, 1226), np.float32)
    truth[100:, ::7] = 20
    write_depth(tmp_path / f"train/{drive}/proj_depth/groundtruth/image_02/0000000005.png", truth, 256)
    line = (
        f"2011_09_26/{drive}/image_02/data/0000000005.png "
        f"{drive}/proj_depth/groundtruth/image_02/0000000005.png 721.5377"
    )
    (tmp_path / "train.txt").write_text(f"{line}\n" * 3)
    (tmp_path / "test.txt").write_text(f"{line}\n{line.split()[0]} None 721.5377\n")
    assert len(kitti_pairs(tmp_path, tmp_path / "test.txt")) == 2
    splits = load_splits(
        "kitti", str(tmp_path), border="kitti", max_depth=80.0,
        train_list=str(tmp_path / "train.txt"), test_list=str(tmp_path / "test.txt"),
    )  # fmt: skip
    image, depth, focal = splits.train[0]
    assert image.shape == (3, 352, 1216) and depth.shape == (352, 1216) and focal == 721.5377
    assert len(splits.test) == 1 and "1 of 2 test frames" in splits.notes[0]
    with pytest.raises(UserError, match="Eigen lists"):
        load_splits("kitti", str(tmp_path))
    inner = tmp_path / "depth_selection/test_depth_prediction_anonymous"
    write_photo(inner / "image/0000000000.png", 352, 1216)
    (inner / "intrinsics").mkdir()
    (inner / "intrinsics/0000000000.txt").write_text("721.5 0 609 0 721.5 172 0 0 1")
    assert benchmark_images(tmp_path)[0].focal == 721.5


@pytest.mark.parametrize("layout", ["sync", "official", "mat", "h5"])
def test_nyu_in_its_four_forms(tmp_path, layout):
    image = np.zeros((480, 640, 3), np.uint8)
    image[:40] = 250  # the top is bright, the left is not
    depth = np.full((480, 640), 3.0, np.float32)
    depth[:40] = 1
    test_list = tmp_path / "test.txt"
    test_list.write_text("kitchen/rgb_00001.jpg kitchen/sync_depth_00001.png 518.8579\n")
    if layout in ("sync", "official"):
        folder = tmp_path / ("test" if layout == "official" else "") / "kitchen"
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "rgb_00001.jpg")
        write_depth(folder / "sync_depth_00001.png", depth)
    else:
        h5py = pytest.importorskip("h5py")
        if layout == "mat":
            with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
                file["images"] = np.stack([image.transpose(2, 1, 0)] * 3)
                file["rawDepths"] = np.stack([depth.T] * 3)
        else:
            (tmp_path / "val/official").mkdir(parents=True)
            with h5py.File(tmp_path / "val/official/00001.h5", "w") as file:
                file["rgb"], file["depth"] = image.transpose(2, 0, 1), depth
    frames = nyu_frames(tmp_path, part="test", split=test_list)
    assert len(frames) == 1
    pixels, values, focal = frames[0]
    assert pixels.shape == (3, 480, 640) and values.shape == (480, 640) and focal == 518.8579
    assert pixels[:, :30].float().mean() > 240 and pixels[:, 100:, :30].float().mean() < 10
    assert values[10, 300] == 1 and values[300, 10] == 3
    if layout == "mat":
        assert len(nyu_frames(tmp_path, part="train", split=test_list)) == 2
        assert nyu_frames(tmp_path, part="train", split=test_list, border="nyu")[0][0].shape == (3, 427, 565)


def test_points_fall_where_the_camera_sees_them():
    points = [[0, 0, 5], [1, 0, 5], [0, 0, 9], [0, 0, -3], [0.02, 0, 8], [np.nan, 0, 1]]
    depth = project_points(points, (10.0, 10.0, 4.0, 3.0), (7, 9))
    assert depth[3, 4] == 5 and depth[3, 6] == 5 and (depth > 0).sum() == 2
    hidden = project_points([[0, 0, 2], [0.4, 0, 4]], (10.0, 10.0, 4.0, 3.0), (7, 9))
    assert (hidden > 0).sum() == 1  # a pixel beside, twice as far: seen from the LiDAR only
    assert (project_points([[0, 0, 2], [0.4, 0, 4]], (10.0, 10.0, 4.0, 3.0), (7, 9), occlusion=0) > 0).sum() == 2
    with pytest.raises(UserError, match="intrinsics"):
        project_points(points, (0.0, 1.0, 0.0, 0.0), (2, 2))


def test_a_drive(tmp_path):
    write_photo(tmp_path / "images/front_camera/00.jpg", 54, 96)
    (tmp_path / "lidar").mkdir()
    # The camera looks along the world's +y: x right, z up there, so a quarter turn about x.
    half = np.sqrt(0.5)
    pose = {"heading": [half, -half, 0, 0], "position": [0, 0, 1]}
    np.savez(tmp_path / "lidar/00.npz", x=[0.0, 2.0], y=[10.0, 20.0], z=[1.0, 1.0])
    frame = {"frame": 0, "lidar": {"file": "lidar/00.npz"}, "cameras": {"front_camera": {
        "file": "images/front_camera/00.jpg", "pose": pose}}}  # fmt: skip
    info = {"image_size": [96, 54], "frames": [frame],
            "cameras": {"front_camera": {"intrinsics": {"fx": 80, "fy": 80, "cx": 47.5, "cy": 26.5}}}}  # fmt: skip
    (tmp_path / "frames.json").write_text(json.dumps(info))
    (tmp_path / "splits.json").write_text(json.dumps({"train": [0], "val": [0], "test": [0]}))
    frames = drive_frames(tmp_path, size=(27, 48))["train"]
    assert frames.focal == 40 and sorted(frames.depths[frames.depths > 0].tolist()) == [10, 20]
    assert frames.depths[0, 13, 24] == 10 or frames.depths[0, 13, 23] == 10
    with pytest.raises(UserError, match="no camera"):
        drive_frames(tmp_path, camera="rear")


def test_photos_as_they_are_meant(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_photo(tmp_path / "turned.jpg", 20, 30, exif=exif)
    assert read_photo(tmp_path / "turned.jpg").shape == (3, 30, 20)
    write_depth(tmp_path / "depth.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:200])
    for name, words in (("depth.png", "is it a depth map"), ("broken.jpg", "damaged"), ("none.jpg", "no such file")):
        with pytest.raises(UserError, match=words):
            read_photo(tmp_path / name)


def test_sizes_that_differ_are_refused_and_can_be_made_one(tmp_path):
    write_photo(tmp_path / "rgb/a.png", 96, 128)
    write_depth(tmp_path / "depth/a.npy")
    pairs, _ = pairs_by_stem(tmp_path)
    with pytest.raises(UserError, match=r"a: the image has 96 x 128 pixels and its depth map 48 x 64.*image_size"):
        FrameFiles(pairs)[0]
    image, depth, _ = FrameFiles(pairs, size=(24, 32))[0]
    assert image.shape == (3, 24, 32) and depth.shape == (24, 32)
    assert set(depth.flatten().tolist()) <= set(np.load(tmp_path / "depth/a.npy").flatten().tolist())


def test_batches_resume_in_mid_epoch():
    rooms = render_rooms(7, height=16, width=24, boxes=2)
    frames = FrameArrays(rooms.images, rooms.depths, rooms.focal)

    def make():
        return FrameBatches(frames, 2, seed=3, augmentation=Augmentation(crop=(8, 12)))

    batches = make()
    seen = list(batches) + list(batches)
    again = make()
    next(iter(again))
    state = again.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    rest = list(resumed) + list(resumed)
    assert len(seen) == 6 and len(rest) == 5
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(seen[1:], rest, strict=True))
    assert seen[0][0].shape == (2, 3, 8, 12) and seen[0][0].min() >= 0 and seen[0][0].max() <= 1
    assert [len(names) for *_, names in evaluation_batches(frames, 3)] == [3, 3, 1]


def test_frames_without_depth_are_refused():
    with pytest.raises(UserError, match="no pixel"):
        FrameArrays(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), float("nan")))


def test_the_wrong_unit_is_warned_of_with_the_reason(tmp_path):
    for n in range(5):
        write_photo(tmp_path / f"rgb/{n}.png")
        write_depth(tmp_path / f"depth/{n}.npy", np.full((48, 64), 2500.0, np.float32))  # millimetres
    with pytest.warns(TenfoldWarning, match=r"half of the depths lie above 2500 m.*1000 \(millimetres\)"):
        load_splits("pairs", str(tmp_path), max_depth=1e4)
    with (
        pytest.warns(TenfoldWarning, match="wrong unit"),
        pytest.raises(UserError, match="beyond max_depth 10 m"),
    ):
        load_splits("pairs", str(tmp_path))
    assert unit_problem(3.0, 9.0) == "" and likely_scales(2500.0, 8000.0)[0] == 1000


def test_doctor_finds_what_is_wrong(tmp_path):
    for n in range(6):
        write_photo(tmp_path / f"rgb/{n}.png")
        write_depth(tmp_path / f"depth/{n}.png")
    healthy = examine(*pairs_by_stem(tmp_path))
    assert healthy["depth_scale"] == 1000 and healthy["guessed"] and 2 < healthy["depth"]["median"] < 3
    assert healthy["valid_share"] == 1
    assert [line for line in healthy["findings"] if "usual scales" not in line] == []
    write_photo(tmp_path / "rgb/6.png")
    write_depth(tmp_path / "depth/1.png", np.full((48, 64), 2.0, np.float32))
    write_depth(tmp_path / "depth/2.png", np.zeros((48, 64), np.float32))
    write_depth(tmp_path / "depth/3.png", np.ones((24, 32), np.float32) * 2.5)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "depth/4.png")
    whole = (tmp_path / "depth/5.png").read_bytes()
    (tmp_path / "depth/5.png").write_bytes(whole[: len(whole) // 2])
    text = "\n".join(examine(*pairs_by_stem(tmp_path), depth_scale=1000)["findings"])
    expected = ("1 images without a depth map: 6.png", "8 bits", "damaged", "differ: 3 (48 x 64, depth 24 x 32)",
                "without a valid pixel: 2", "of one value only: 1, 3")  # fmt: skip
    for words in expected:
        assert words in text, text
