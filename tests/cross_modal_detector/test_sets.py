"""Frames from everywhere, read exactly; augmentations that keep every matrix; bad input in one line."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector import (
    ImageAugmentation,
    ModalMasking,
    NuScenesTables,
    ObjectSampling,
    Sample,
    SceneAugmentation,
    WorldSettings,
    balanced_order,
    build_database,
    corners_of,
    examine_rig,
    grid_mask_of,
    move_scene,
    points_in_boxes,
    project,
    read_database,
    read_frame,
    read_frames,
    read_infos,
    without,
    write_world,
)
from tenfold.systems.cross_modal_detector.augmentation.images import change_images
from tenfold.systems.cross_modal_detector.cli import VERBS
from tenfold.systems.cross_modal_detector.geometry.boxes import overlap_from_above
from tenfold.systems.cross_modal_detector.geometry.poses import inverse_pose, quaternion_of
from tenfold.systems.cross_modal_detector.sets.nuscenes_tables import CATEGORIES
from tenfold.systems.cross_modal_detector.sets.world import VERSION, WORLD_CLASSES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), WorldSettings({"train": 2, "test": 1}, columns=90))


@pytest.fixture(scope="module")
def frames(world):
    return NuScenesTables(world, VERSION).frames("train")


def read(frame, **options):
    return read_frame(frame, WORLD_CLASSES, **options)


def test_the_world_is_read_back_through_nuscenes_tables(frames, world):
    frame = frames[1]
    sample = read(frame, sweeps=10)
    assert len(frame.cameras) == 6 and sample.images[0].shape == (32, 96, 3)
    ages = [sweep.age for sweep in frame.sweeps]
    assert ages == pytest.approx([0.1, 0.5, 0.6], abs=1e-5)  # positive, the latest first; the ring is not among them
    assert sorted(set(np.round(sample.points[:, 4], 3))) == pytest.approx([0, 0.1, 0.5, 0.6])
    key = sample.points[sample.points[:, 4] == 0]
    assert points_in_boxes(key, sample.boxes).sum(0).tolist() == frame.counts.tolist()
    # Boxes project onto pixels of their colour: LiDAR to vehicle to world to vehicle (later) to camera.
    colours = {0: 0, 1: 2, 2: 0}  # red cars, blue people, yellow barriers: the channel that leads
    seen = 0
    for image, matrix in zip(sample.images, sample.lidar2img, strict=True):
        pixels, depth = project(sample.boxes[:, :3], matrix)
        for (u, v), far, label in zip(pixels, depth, sample.labels, strict=True):
            if far > 1 and 1 < u < 94 and 1 < v < 30:
                colour = image[int(v), int(u)].astype(int)
                seen += int(colour[colours[int(label)]] > colour[2 - colours[int(label)]] + 20)
    assert seen >= 3
    still = np.linalg.norm(frame.boxes[:, 7:], axis=1)
    assert np.isfinite(still).all() and still.max() < 6


def test_moving_the_scene_moves_no_pixel(frames):
    sample = read(frames[0])
    draw = np.random.default_rng(0)
    corners = corners_of(sample.boxes)
    before = [project(corners, matrix)[0] for matrix in sample.lidar2img]
    augment = SceneAugmentation()
    for _ in range(8):
        moved = augment(sample, draw)
        after = [project(corners_of(moved.boxes), matrix)[0] for matrix in moved.lidar2img]
        for old, new in zip(before, after, strict=True):
            # A mirrored box has its corners in another order, on the same pixels.
            for box in range(len(corners)):
                if np.isfinite(old[box]).all():
                    gap = np.abs(old[box][:, None] - new[box][None]).max(-1).min(1)
                    assert gap.max() < 1e-6 * max(1.0, np.abs(old[box]).max())
        hits = points_in_boxes(moved.points, moved.boxes).sum(0) - frames[0].counts
        assert np.abs(hits).max() <= 1
    flipped = move_scene(sample, np.diag([1.0, -1.0, 1.0, 1.0]))
    assert flipped.boxes[:, 1] == pytest.approx(-sample.boxes[:, 1])
    assert np.cos(flipped.boxes[:, 6] + sample.boxes[:, 6]) == pytest.approx(np.ones(len(sample.boxes)))
    assert flipped.boxes[:, 8] == pytest.approx(-sample.boxes[:, 8])


def test_pixels_move_as_the_image_does(frames):
    sample = read(frames[0])
    marked = [np.zeros((32, 96, 3), dtype=np.uint8) for _ in sample.images]
    target = np.array([[10.3, 0.4, -0.2], [8.0, 6.0, -1.0], [-9.0, 3.0, -1.0]])
    augment = ImageAugmentation((24, 80), (0.94, 1.25), 0.5)
    draw = np.random.default_rng(1)
    for view, image in enumerate(marked):
        for u, v in project(target, sample.lidar2img[view])[0]:
            if np.isfinite(u) and 2 < u < 93 and 2 < v < 29:
                image[int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2] = 255
    sample = replace(sample, images=marked)
    found = 0
    for _ in range(6):
        change = augment.draw((32, 96), draw)
        changed = change_images(sample, change, augment.size)
        for view, image in enumerate(changed.images):
            assert image.shape == (24, 80, 3)
            for u, v in project(target, changed.lidar2img[view])[0]:
                if np.isfinite(u) and 2 < u < 77 and 2 < v < 21:
                    assert image[int(v), int(u)].max() > 60
                    found += 1
    assert found > 3
    # The test's change of nuScenes' images: exactly half of them, the bottom rows, the middle columns.
    fixed = ImageAugmentation((320, 800)).fixed((900, 1600))
    assert (fixed.resized, fixed.left, fixed.top) == ((450, 800), 0, 130)


def test_sensors_are_hidden_before_anything_else(frames):
    sample = read(frames[0])
    zeroed, dropped = (without(sample, lidar=True, policy=policy) for policy in ("zero", "drop"))
    assert (zeroed.points == 0).all() and len(zeroed.points) == len(sample.points) and dropped.points is None
    moved = SceneAugmentation()(zeroed, np.random.default_rng(0))
    assert np.ptp(moved.points[:, :3], axis=0).max() == 0  # all in one place, wherever the scene was moved
    draw = np.random.default_rng(0)
    masked = [ModalMasking(camera=0.25, drop=0.5)(sample, draw) for _ in range(400)]
    hidden_points = np.mean([part.points is None or (part.points == 0).all() for part in masked])
    hidden_images = np.mean([all(image is None or not image.any() for image in part.images) for part in masked])
    assert abs(hidden_points - 0.25) < 0.06 and abs(hidden_images - 0.25) < 0.06
    assert sum(any(image is None for image in part.images) for part in masked) > 60
    with pytest.raises(UserError, match="nothing is left"):
        without(dropped, cameras=range(6))


def test_grid_mask_is_the_official_one():
    """Period 6 with stripes of 3, offsets 1 and 4, in a mask of 12 x 18, whose middle 8 x 12 is kept."""
    mask = np.ones((12, 18))
    for n in range(12 // 6):
        mask[6 * n + 1 : min(6 * n + 4, 12)] = 0
    for n in range(18 // 6):
        mask[:, 6 * n + 4 : min(6 * n + 7, 18)] = 0
    assert (grid_mask_of((8, 12), 6, (1, 4)).numpy() == 1 - mask[2:10, 3:15]).all()


def test_objects_are_pasted_into_points_and_images(frames):
    samples = [read(frame, keep_empty=False) for frame in frames]
    database = build_database(samples, 3, least_points=3)
    assert sum(map(len, database)) > 3
    bare = replace(samples[0], boxes=np.zeros((0, 9)), labels=np.zeros(0, dtype=np.int64))
    pasted = ObjectSampling(database, WORLD_CLASSES)(bare, np.random.default_rng(0))
    assert 2 <= len(pasted.boxes) <= 6 and len(pasted.labels) == len(pasted.boxes)
    apart = overlap_from_above(pasted.boxes, pasted.boxes)
    assert apart.sum() == len(pasted.boxes)  # each with itself alone
    assert points_in_boxes(pasted.points, pasted.boxes).sum(0).min() >= 3
    assert any((a != b).any() for a, b in zip(bare.images, pasted.images, strict=True))
    again = ObjectSampling(database, WORLD_CLASSES)(samples[0], np.random.default_rng(0))
    assert not np.triu(overlap_from_above(again.boxes, again.boxes), 1)[len(samples[0].boxes) :].any()


def test_objects_of_mmdet3d_stand_on_their_bottom(frames, tmp_path):
    points = np.array([[0, 0, 0.1, 9, 0.05], [0.5, 0, 1.4, 9, 0.0]] * 3, dtype=np.float32)  # above the bottom
    (tmp_path / "one.bin").write_bytes(points.tobytes())
    row = {"path": "one.bin", "image_path": "", "box3d_lidar": np.array([9.0, 9, -1.8, 4, 2, 1.5, 0.3]),
           "num_points_in_gt": 6, "difficulty": 0}  # fmt: skip
    (tmp_path / "objects.pkl").write_bytes(pickle.dumps({"car": [row], "tram": [row]}))
    database = read_database(tmp_path / "objects.pkl", tmp_path, WORLD_CLASSES)
    assert [len(part) for part in database] == [1, 0, 0]
    bare = replace(read(frames[0]), boxes=np.zeros((0, 9)), labels=np.zeros(0, dtype=np.int64))
    pasted = ObjectSampling(database, WORLD_CLASSES)(bare, np.random.default_rng(0))
    assert pasted.boxes[0, 2] == pytest.approx(-1.05)  # the centre of gravity
    assert points_in_boxes(pasted.points, pasted.boxes).sum() == 6
    assert pasted.points[-6:, 4].tolist() == pytest.approx([0.05, 0] * 3)


def test_rare_classes_are_drawn_more_often(frames):
    few = [replace(frame, names=("car",), boxes=frame.boxes[:1], num_points=None) for frame in frames * 20]
    few[0] = replace(few[0], names=("barrier",))
    order = balanced_order(few, ("car", "barrier"), np.random.default_rng(0))
    assert order.count(0) == len(few) // 2 and len(order) == 2 * (len(few) // 2)


def info_of(frame, root, version):
    """The frame as mmdet3d's info file holds it."""

    def file(source):
        return str(source.relative_to(root))

    cams, images = {}, {}
    for view in frame.cameras:
        cam2lidar = inverse_pose(view.lidar2cam)
        cams[view.name] = {
            "data_path": f"./data/nuscenes/{file(view.image)}", "type": view.name, "cam_intrinsic": view.intrinsics,
            "sensor2lidar_rotation": cam2lidar[:3, :3], "sensor2lidar_translation": cam2lidar[:3, 3],
            "timestamp": round(view.timestamp * 1e6),
        }  # fmt: skip
        images[view.name] = {"img_path": view.image.name, "cam2img": view.intrinsics.tolist(),
                             "lidar2cam": view.lidar2cam.tolist(), "timestamp": view.timestamp}  # fmt: skip
    if version == 1:
        return {
            "lidar_path": f"./data/nuscenes/{file(frame.points)}", "token": frame.token, "cams": cams,
            "timestamp": round(frame.timestamp * 1e6),
            "lidar2ego_translation": frame.lidar2ego[:3, 3].tolist(),
            "lidar2ego_rotation": quaternion_of(frame.lidar2ego[:3, :3]).tolist(),
            "ego2global_translation": frame.ego2global[:3, 3].tolist(),
            "ego2global_rotation": quaternion_of(frame.ego2global[:3, :3]).tolist(),
            "sweeps": [
                {"data_path": f"./data/nuscenes/{file(s.points)}", "timestamp": round((frame.timestamp - s.age) * 1e6),
                 "sensor2lidar_rotation": s.to_key[:3, :3], "sensor2lidar_translation": s.to_key[:3, 3]}
                for s in frame.sweeps
            ],
            "gt_boxes": frame.boxes[:, :7], "gt_names": np.array(frame.names), "gt_velocity": frame.boxes[:, 7:],
            "num_lidar_pts": frame.counts,
        }  # fmt: skip
    order = ["car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian",
             "traffic_cone", "barrier"]  # fmt: skip
    lidar2global = frame.ego2global @ frame.lidar2ego
    return {
        "token": frame.token, "timestamp": frame.timestamp, "ego2global": frame.ego2global.tolist(), "images": images,
        "lidar_points": {"lidar_path": frame.points.name, "lidar2ego": frame.lidar2ego.tolist()},
        "lidar_sweeps": [
            {"timestamp": frame.timestamp - s.age,
             "lidar_points": {"lidar_path": s.points.name if "sweeps" in s.points.parts else file(s.points),
                              "lidar2ego": np.eye(4).tolist(), "ego2global": (lidar2global @ s.to_key).tolist()}}
            for s in frame.sweeps
        ],
        "instances": [
            {"bbox_3d": box[:7].tolist(), "bbox_label_3d": order.index(name), "velocity": box[7:].tolist(),
             "num_lidar_pts": int(count)}
            for box, name, count in zip(frame.boxes, frame.names, frame.counts, strict=True)
        ],
    }, order  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
def test_info_files_give_the_tables_frames(frames, world, tmp_path, version):
    rows = [info_of(frame, world, version) for frame in frames]
    if version == 1:
        content = {"infos": rows, "metadata": {"version": "v1.0-world"}}
    else:
        categories = {name: number for number, name in enumerate(rows[0][1])}
        content = {"metainfo": {"categories": categories}, "data_list": [row for row, _ in rows]}
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content))
    for ours, theirs in zip(read_infos(path, world), frames, strict=True):
        assert ours.names == theirs.names and ours.points == theirs.points
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-6)
        assert [sweep.age for sweep in ours.sweeps] == pytest.approx([sweep.age for sweep in theirs.sweeps], abs=1e-5)
        one, other = read(ours, sweeps=9), read(theirs, sweeps=9)
        np.testing.assert_allclose(one.points, other.points, atol=1e-3)
        np.testing.assert_allclose(one.lidar2img, other.lidar2img, atol=1e-4)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"infos": Evil()}, "builtins.print"),
        ({"infos": [np.array([object()], dtype=object)]}, "array of objects|builtins.object"),
        ({"rows": []}, "neither 'infos'"),
        ({"data_list": [{}], "metainfo": {"categories": {}}}, "version 2"),
        ({"infos": [{"token": 1}]}, "version 1"),
    ],
)
def test_info_files_never_execute(tmp_path, capsys, content, word):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=word):
        read_infos(tmp_path / "bad.pkl", tmp_path)
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(content)[:-4])
    with pytest.raises(UserError):
        read_infos(tmp_path / "cut.pkl", tmp_path)


def test_an_info_with_an_unknown_class_is_refused(frames, world, tmp_path):
    row = info_of(frames[0], world, 1) | {"gt_names": np.array(["tram"] * len(frames[0].names))}
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps({"infos": [row]}))
    with pytest.raises(UserError, match="no class 'tram'"):
        read_infos(tmp_path / "infos.pkl", world)


@pytest.mark.parametrize("name", ["frames.json", "frames.parquet"])
def test_frames_are_written_and_read_back(frames, world, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    said = VERBS["frames"](str(world), str(world / name), version=VERSION, split="train")
    assert said["frames"] == len(frames)
    for ours, theirs in zip(read_frames(world / name), frames, strict=True):
        np.testing.assert_array_equal(read(ours, sweeps=3).points, read(theirs, sweeps=3).points)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        assert ours.attributes == theirs.attributes and ours.counts.tolist() == theirs.counts.tolist()
    (world / name).unlink()


def rig_row(**changes):
    camera = {"name": "front", "image": None, "intrinsics": [[50, 0, 48], [0, 50, 16], [0, 0, 1]],
              "lidar2cam": np.eye(4).tolist()}  # fmt: skip
    row = {
        "token": "0",
        "points": "points.npy",
        "cameras": [camera],
        "boxes": [[5, 0, 0, 4, 2, 1.5, 0]],
        "names": ["car"],
    }
    for key, value in changes.items():
        if key in camera:
            camera[key] = value
        else:
            row[key] = value
    return row


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"intrinsics": [[0, 0, 1], [0, 5, 1], [0, 0, 1]]}, "pinhole"),
        ({"lidar2cam": np.zeros((4, 4)).tolist()}, "0 0 0 1|singular"),
        ({"lidar2cam": np.diag([1, 1, -1, 1]).tolist()}, "mirror"),
        ({"lidar2cam": np.diag([2, 2, 2, 1]).tolist()}, "scaled by 2"),
        ({"lidar2cam": [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, "not orthogonal"),
        ({"boxes": [[5, 0, 0, 4, 0, 1.5, 0]]}, "above 0"),
        ({"boxes": [[5, 0, 0, -4, 2, 1.5, 0]]}, "above 0"),
        ({"boxes": [[float("nan"), 0, 0, 4, 2, 1.5, 0]]}, "not finite|JSON"),
        ({"names": []}, "names"),
        ({"points": "../points.npy"}, "leaves the folder"),
        ({"points": None}, "neither points nor an image"),
        ({"points": 5.0}, "neither|cannot read|leaves|no such|KeyError|"),
        ({"boxes": "many"}, "as the format says|boxes"),
    ],
)
def test_wrong_rigs_are_refused(tmp_path, changes, word):
    np.save(tmp_path / "points.npy", np.zeros((4, 4), dtype=np.float32))
    (tmp_path / "frames.json").write_text(json.dumps({"format": "tenfold-frames-1", "frames": [rig_row(**changes)]}))
    with pytest.raises(UserError, match=word):
        read(read_frames(tmp_path / "frames.json")[0])


def test_missing_and_broken_sensor_files(tmp_path):
    good = np.ones((4, 4), dtype=np.float32)
    row = rig_row(image="front.jpg")
    (tmp_path / "frames.json").write_text(json.dumps({"format": "tenfold-frames-1", "frames": [row]}))
    np.save(tmp_path / "points.npy", good)
    frame = read_frames(tmp_path / "frames.json")[0]
    with pytest.raises(UserError, match=r"front\.jpg"):
        read(frame)
    assert read(frame, missing="missing").images == [None]
    (tmp_path / "front.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="damaged or no image"):
        read(frame)
    (tmp_path / "front.jpg").unlink()
    bad = good.copy()
    bad[2, 1] = np.nan
    np.save(tmp_path / "points.npy", bad)
    with pytest.raises(UserError, match="1 of 4 points"):
        read(frame, missing="missing")
    (tmp_path / "points.npy").unlink()
    assert read(frame, missing="missing").points is None
    (tmp_path / "cut.bin").write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match="no multiple of 20"):
        read(replace(frame, points=tmp_path / "cut.bin"), missing="missing")


def test_tables_that_point_nowhere_are_refused(tmp_path):
    root = write_world(tmp_path, WorldSettings({"train": 1}, columns=8, beams=2, sweeps=0, objects=(1, 1)))
    with pytest.raises(UserError, match="no split 'val'"):
        NuScenesTables(root, VERSION).frames("val")
    for table, column in (("sample_data", "ego_pose_token"), ("sample_annotation", "instance_token")):
        path = root / VERSION / f"{table}.json"
        rows = whole = json.loads(path.read_text())
        rows = [row | {column: "nowhere"} for row in rows]
        path.write_text(json.dumps(rows))
        with pytest.raises(UserError, match=f"no row 'nowhere', which {table}"):
            NuScenesTables(root, VERSION).frames("train")
        path.write_text(json.dumps(whole))
    (root / VERSION / "scene.json").write_text("{}")
    with pytest.raises(UserError, match=r"scene\.json is no table"):
        NuScenesTables(root, VERSION)
    assert set(CATEGORIES.values()) >= set(WORLD_CLASSES)


def test_the_doctor_names_usual_mistakes(frames):
    assert examine_rig(frames).mistakes == []

    def turned(change):
        views = tuple(replace(view, lidar2cam=change(view.lidar2cam)) for view in frames[0].cameras)
        return examine_rig([replace(frames[0], cameras=views)])

    inverted = turned(inverse_pose)
    assert any("inverted" in text for camera in inverted.cameras for text in camera.mistakes)
    opengl = turned(lambda pose: np.diag([1, -1, -1, 1]) @ pose)
    assert any("OpenGL" in text for camera in opengl.cameras for text in camera.mistakes)
    cloud = read(frames[0]).points[:, :4].copy()
    cloud[:, :3] *= 1000
    assert any("millimetres" in text for text in examine_rig([replace(frames[0], points=cloud)]).mistakes)
    swapped = replace(frames[0], boxes=frames[0].boxes[:, [1, 0, 2, 3, 4, 5, 6, 7, 8]])
    assert any("x and y swapped" in text for text in examine_rig([swapped]).mistakes)
    assert isinstance(read(frames[0]), Sample)
