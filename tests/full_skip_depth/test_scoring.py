"""The scorer against the published definitions, written here a second time with numpy on the same files."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth import (
    PROTOCOLS,
    DepthScorer,
    boundary_scores,
    calibrate,
    depth_metrics,
    pair_files,
    read_depth,
    score_files,
    write_depth_png,
)
from tenfold.systems.full_skip_depth.scoring.boundaries import depth_edges
from tenfold.systems.full_skip_depth.scoring.protocols import crop_box, find_protocol
from tenfold.systems.full_skip_depth.sets.depth_files import write_pfm


def one(prediction, truth):
    p, d = torch.as_tensor(prediction)[None], torch.as_tensor(truth)[None]
    return {name: float(value) for name, value in depth_metrics(p, d, d > 0).items()}


def test_known_cases():
    truth = torch.rand(5, 6, dtype=torch.float64) * 5 + 1
    double = one(2 * truth, truth)
    assert double["abs_rel"] == pytest.approx(1) and double["rmse_log"] == pytest.approx(math.log(2))
    assert double["log10"] == pytest.approx(0.3010299957) and double["silog"] == pytest.approx(0, abs=1e-5)
    assert [double[f"delta{n}"] for n in (1, 2, 3)] == [0, 0, 0]
    assert one(torch.full((2, 2), 1.25), torch.ones(2, 2))["delta1"] == 0  # strictly below
    assert one(torch.full((2, 2), 1.2499), torch.ones(2, 2))["delta1"] == 1


def test_mean_over_images_is_not_the_mean_over_pixels():
    truth = torch.ones(2, 1, 10)
    truth[1, 0, 1:] = 0
    prediction = torch.stack([torch.full((1, 10), 2.0), torch.full((1, 10), 5.0)])
    scorer = DepthScorer([PROTOCOLS["all"]], edges=[0, 1, 3])
    scorer.update_all(prediction, truth, ["a", "b"])
    (score,) = scorer.scores()
    assert score.metrics["abs_rel"] == pytest.approx((1 + 4) / 2) and score.pixels == 11
    assert score.rows["abs_rel"] == [1, 4]
    assert score.distances == {"1-3": {"abs_rel": 2.5, "rmse": 2.5, "pixels": 11}}
    batch = depth_metrics(prediction, truth, truth > 0)
    assert batch["abs_rel"].tolist() == [1, 4]


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        ("garg", (375, 1242), (153, 371, 44, 1197)),
        ("garg", (352, 1216), (143, 349, 43, 1172)),
        ("eigen", (375, 1242), (124, 342, 44, 1197)),
        ("nyu", (480, 640), (45, 471, 41, 601)),
    ],
)
def test_crop_boxes(crop, size, box):
    assert crop_box(crop, *size) == box
    if crop == "nyu":
        assert (box[1] - box[0], box[3] - box[2]) == (426, 560)


SIZES = [(375, 1242), (370, 1226), (376, 1241)]


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    """Sparse truth as 16-bit PNG, predictions of the cropped frames, one frame without valid pixels in the crop."""
    folder = tmp_path_factory.mktemp("kitti")
    random = np.random.default_rng(0)
    for name in ("truth", "cropped", "full"):
        (folder / name / "drive").mkdir(parents=True)
    for n, (height, width) in enumerate([*SIZES, (375, 1242)]):
        rows = np.linspace(70, 4, height)[:, None] * random.uniform(0.8, 1.2, (height, width))
        rows[random.random((height, width)) > 0.1] = 0
        rows[200, 500:510] = 90  # beyond the cap
        if n == 3:
            rows[124:] = 0
        truth = np.round(rows * 256).astype(np.uint16)
        Image.fromarray(truth).save(folder / "truth/drive" / f"{n}.png")
        whole = np.round(np.linspace(60, 5, height)[:, None] * random.uniform(0.7, 1.4, (height, width)) * 256)
        whole[160, 100] = 0  # predicted «nothing»: clipped
        Image.fromarray(whole.astype(np.uint16)).save(folder / "full/drive" / f"{n}.png")
        left = (width - 1216) // 2
        cut = whole[height - 352 :, left : left + 1216].astype(np.uint16)
        Image.fromarray(cut).save(folder / "cropped/drive" / f"{n}.png")
    return folder


def published(folder, which, protocol):
    """Numbers of the published evaluation programs' formulas, image by image."""
    rows = []
    for n, (height, width) in enumerate(SIZES):
        truth = np.array(Image.open(folder / "truth/drive" / f"{n}.png")).astype(np.float64) / 256
        cut = np.array(Image.open(folder / "cropped/drive" / f"{n}.png")).astype(np.float64) / 256
        top, left = height - 352, int((width - 1216) / 2)
        mask = np.zeros_like(truth)
        if protocol == "cropped":
            truth, prediction = truth[top:, left : left + 1216], cut
            mask = np.zeros_like(truth)
            height, width = 352, 1216
        elif which == "full":
            prediction = np.array(Image.open(folder / "full/drive" / f"{n}.png")).astype(np.float64) / 256
        else:
            prediction = np.zeros_like(truth)
            prediction[top:, left : left + 1216] = cut
        if protocol == "eigen":
            mask[
                int(0.3324324 * height) : int(0.91351351 * height), int(0.0359477 * width) : int(0.96405229 * width)
            ] = 1
        elif protocol == "server":
            mask[:] = 1
        else:
            mask[
                int(0.40810811 * height) : int(0.99189189 * height), int(0.03594771 * width) : int(0.96405229 * width)
            ] = 1
        cap = np.inf if protocol == "server" else 80
        valid = (truth > 1e-3) & (truth < cap) & (mask > 0)
        d, p = truth[valid], prediction[valid]
        if protocol == "median":
            p = p * np.median(d) / np.median(p)
        p = np.maximum(p, 1e-6) if protocol == "server" else np.clip(p, 1e-3, 80)
        g = np.log(p) - np.log(d)
        silog = np.sqrt(np.mean(g**2) - np.mean(g) ** 2) * 100
        if protocol == "server":
            relative = np.abs(p - d) / d
            rows.append([silog, 100 * np.mean(relative**2), 100 * np.mean(relative),
                         np.sqrt(np.mean((1000 / p - 1000 / d) ** 2)), np.mean(np.abs(p - d)),
                         np.sqrt(np.mean((p - d) ** 2))])  # fmt: skip
            continue
        thresh = np.maximum(d / p, p / d)
        rows.append([np.mean(np.abs(d - p) / d), np.mean((d - p) ** 2 / d), np.sqrt(np.mean((d - p) ** 2)),
                     np.sqrt(np.mean(g**2)), np.mean(np.abs(np.log10(p) - np.log10(d))), silog,
                     *(np.mean(thresh < 1.25**k) for k in (1, 2, 3))])  # fmt: skip
    return np.mean(rows, 0)


@pytest.mark.parametrize("which", ["cropped", "full"])
def test_both_kitti_protocols_from_one_folder(kitti, which):
    pairs, lacking = pair_files(kitti / which, kitti / "truth")
    assert len(pairs) == 4 and lacking == 0
    names = ["kitti-garg-full", "kitti-garg-cropped", "kitti-eigen-full", "kitti-garg-full-median"]
    if which == "full":
        names.append("kitti-benchmark")
    scores = score_files(pairs, [PROTOCOLS[name] for name in names])
    formulas = {"kitti-garg-full": "full", "kitti-garg-cropped": "cropped", "kitti-eigen-full": "eigen",
                "kitti-garg-full-median": "median", "kitti-benchmark": "server"}  # fmt: skip
    for score in scores:
        server = score.protocol == "kitti-benchmark"
        if server:
            score.metrics = {k: np.mean(v[:3]) for k, v in score.rows.items()}  # the fourth frame has values there
        else:
            assert score.skipped == ["drive/3"]
        expected = published(kitti, which, formulas[score.protocol])
        np.testing.assert_allclose(list(score.metrics.values()), expected, rtol=1e-6, err_msg=score.protocol)
    by_name = {score.protocol: score.metrics for score in scores}
    # The cropped protocol leaves out a band of far pixels.
    assert by_name["kitti-garg-cropped"]["rmse"] < by_name["kitti-garg-full"]["rmse"]
    assert scores[0].unusable > 0


def test_nyu_and_depth_anything(tmp_path):
    random = np.random.default_rng(1)
    expected = {"nyu-eigen": [], "nyu-full": [], "depth-anything-v2": []}
    for n in range(2):
        truth = random.integers(0, 12000, (480, 640)).astype(np.uint16)
        prediction = random.uniform(0.2, 12, (480, 640)).astype(np.float32)
        for name in ("truth", "ours"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(truth).save(tmp_path / "truth" / f"{n}.png")
        np.save(tmp_path / "ours" / f"{n}.npy", prediction)
        metres = truth.astype(np.float32) / np.float32(1000)  # compared in float32, as the published programs do
        for name in expected:
            mask = np.zeros((480, 640), bool)
            mask[
                slice(45, 471) if name == "nyu-eigen" else slice(None),
                slice(41, 601) if name == "nyu-eigen" else slice(None),
            ] = 1
            cap = 80 if name == "depth-anything-v2" else 10
            mask &= (metres > 1e-3) & (metres < cap)
            p, d = prediction[mask].astype(np.float64), metres[mask].astype(np.float64)
            if name != "depth-anything-v2":
                p = np.clip(p, 1e-3, 10)
            g = np.log(p) - np.log(d)
            silog = np.sqrt(np.mean(g**2) - 0.5 * np.mean(g) ** 2) if cap == 80 else 100 * np.std(g)
            expected[name].append([np.mean(np.abs(p - d) / d), np.sqrt(np.mean((p - d) ** 2)), silog])
    pairs, _ = pair_files(tmp_path / "ours", tmp_path / "truth")
    for score in score_files(pairs, [PROTOCOLS[name] for name in expected], boundaries=True):
        found = [score.metrics[name] for name in ("abs_rel", "rmse", "silog")]
        np.testing.assert_allclose(found, np.mean(expected[score.protocol], 0), rtol=1e-6)


def test_median_alignment_hides_the_scale():
    truth = torch.rand(9, 9) * 5 + 1
    for name, value in (("all", 2.0), ("median", 0.0)):
        scorer = DepthScorer([PROTOCOLS[name]])
        scorer.update(3 * truth, truth, "x")
        assert scorer.scores()[0].metrics["abs_rel"] == pytest.approx(value, abs=1e-6)


def test_boundaries():
    truth = torch.full((1, 20, 30), 2.0)
    truth[:, :, 15:] = 4
    valid = truth > 0
    assert depth_edges(truth, valid)[0, 0].nonzero().flatten().tolist() == [14, 15]
    shifted = torch.full_like(truth, 2.0)
    shifted[:, :, 16:] = 4
    far = torch.full_like(truth, 2.0)
    far[:, :, 25:] = 4
    flat = torch.full_like(truth, 3.0)
    scores = [float(boundary_scores(p, truth, valid)["boundary_f"]) for p in (truth, shifted, far, flat)]
    assert scores == [1, 1, 0, 0]
    assert float(boundary_scores(shifted, truth, valid, tolerance=0)["boundary_f"]) == pytest.approx(0.5)
    # Within two pixels of the edge lie columns 12 to 17; of these the flat prediction is off by 1/2 or 1/4.
    assert float(boundary_scores(flat, truth, valid)["edge_abs_rel"]) == pytest.approx((3 * 0.5 + 3 * 0.25) / 6)
    none = boundary_scores(flat, flat, valid)
    assert none["boundary_f"].isnan().all() and none["edge_abs_rel"].isnan().all()


def test_calibration():
    exact = calibrate([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert exact.scale == pytest.approx(2) and exact.shift == 0 and max(map(abs, exact.residuals)) < 1e-9
    assert calibrate([2.0], [3.0]).interval is None
    random = np.random.default_rng(0)
    p = random.uniform(1, 8, 12)
    inside = 0
    for _ in range(200):
        low, high = calibrate(p, 1.3 * p * np.exp(random.normal(0, 0.05, 12))).interval
        inside += low < 1.3 < high
    assert 180 <= inside <= 199  # 95 %
    both = calibrate(p, 0.8 * p + 0.5, "scale-shift")
    assert (both.scale, both.shift) == pytest.approx((0.8, 0.5))
    for bad, words in (([0.0], "above 0"), ([float("nan")], "above 0"), ([], "1 measured")):
        with pytest.raises(UserError, match=words):
            calibrate(bad, [1.0] * len(bad))


def test_depth_files_of_every_kind(tmp_path):
    depth = (np.random.default_rng(0).random((7, 9)) * 9 + 0.5).astype(np.float32)
    depth[0, 0] = 0
    write_depth_png(tmp_path / "a.png", depth, 1000)
    np.save(tmp_path / "a.npy", depth[None])
    np.savez(tmp_path / "a.npz", depth=depth, other=depth[:2])
    write_pfm(tmp_path / "a.pfm", depth)
    assert np.abs(read_depth(tmp_path / "a.png", 1000) - depth).max() <= 0.0005001
    for suffix in ("npy", "npz", "pfm"):
        np.testing.assert_array_equal(read_depth(tmp_path / f"a.{suffix}"), depth)
    OpenEXR = pytest.importorskip("OpenEXR")
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": depth}) as file:
        file.write(str(tmp_path / "a.exr"))
    np.testing.assert_array_equal(read_depth(tmp_path / "a.exr"), depth)


def test_whole_numbers_are_not_cut(tmp_path):
    Image.fromarray(np.array([[0, 255, 257, 65535]], np.uint16)).save(tmp_path / "k.png")
    np.testing.assert_allclose(read_depth(tmp_path / "k.png", 256)[0], [0, 255 / 256, 257 / 256, 65535 / 256])


def bad_files(folder):
    """Files that cannot be read, and words of the line that says so."""
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (9, 9), dtype=np.uint8)).save(folder / "eight.png")
    Image.fromarray(random.integers(0, 9999, (40, 40)).astype(np.uint16)).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    np.save(folder / "three.npy", np.zeros((3, 4, 5), np.float32))
    np.save(folder / "text.npy", np.array([["a"]]))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + str(
        {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}).ljust(117).encode() + b"\n")  # fmt: skip
    np.savez(folder / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    (folder / "short.pfm").write_bytes(b"Pf\n9 9\n-1.0\nabc")
    (folder / "colour.pfm").write_bytes(b"PF\n1 1\n-1.0\n" + b"\0" * 12)
    return {"eight.png": "8 bits", "cut.png": "damaged", "three.npy": "shape", "text.npy": "not numbers",
            "empty.npy": "damaged", "huge.npy": "pixels are read", "two.npz": "not exactly one", "short.pfm": "shorter",
            "colour.pfm": "no grey PFM", "none.png": "no such file", "a.txt": "no depth file"}  # fmt: skip


def test_bad_files_are_refused_in_one_line(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=words) as caught:
            read_depth(tmp_path / name, 256)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(UserError, match="depth_scale"):
        read_depth(tmp_path / "eight.png")
    with pytest.raises(UserError, match="16 bits"):
        write_depth_png(tmp_path / "far.png", np.full((2, 2), 300, np.float32), 256)


def test_values_that_are_no_depth_become_no_value(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[np.nan, np.inf, -np.inf, -1, 0, 2]], np.float32))
    assert read_depth(tmp_path / "x.npy").tolist() == [[0, 0, 0, 0, 0, 2]]


def test_what_does_not_belong_together_is_refused(tmp_path, kitti):
    narrow = torch.ones(360, 1200)
    with pytest.raises(UserError, match="352 x 1216"):
        PROTOCOLS["kitti-garg-cropped"].prepare(narrow, narrow)
    with pytest.raises(UserError, match="480 x 640"):
        PROTOCOLS["nyu-eigen"].prepare(narrow, narrow)
    with pytest.raises(UserError, match="--resize"):
        PROTOCOLS["all"].prepare(torch.ones(4, 4), torch.ones(5, 5))
    scorer = DepthScorer([PROTOCOLS["all"]])
    scorer.update(torch.ones(4, 4), torch.zeros(4, 4), "empty")
    with pytest.raises(UserError, match="no image has valid pixels"):
        scorer.scores()
    (tmp_path / "few/drive").mkdir(parents=True)
    (tmp_path / "few/drive/0.png").write_bytes((kitti / "full/drive/0.png").read_bytes())
    with pytest.raises(UserError, match=r"3 of 4 truth files have no prediction, the first is 'drive/1'"):
        pair_files(tmp_path / "few", kitti / "truth")
    assert pair_files(tmp_path / "few", kitti / "truth", missing=True)[1] == 3
    with pytest.raises(UserError, match="no protocol"):
        find_protocol("kitti")
    assert find_protocol("all", 50.0).max_depth == 50
