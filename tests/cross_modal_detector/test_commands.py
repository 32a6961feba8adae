"""What the command line offers: drawings, the robustness table, import and export, and a run's claims."""

import json

import numpy as np
import pytest
import torch
from systems_for_tests import CASES, a_rig

import tenfold
from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector import CORRUPTIONS, build_small, write_world
from tenfold.systems.cross_modal_detector.cli import VERBS, export, import_official, predict
from tenfold.systems.cross_modal_detector.delivery.onnx import DenseDetector, example_inputs, export_detector, grid_of
from tenfold.systems.cross_modal_detector.experiment.comparison import claims_of, summary_of
from tenfold.systems.cross_modal_detector.experiment.settings import PRESETS
from tenfold.systems.cross_modal_detector.sets.frames import read_frame
from tenfold.systems.cross_modal_detector.sets.nuscenes_tables import NuScenesTables
from tenfold.systems.cross_modal_detector.sets.world import VERSION, WORLD_CLASSES, WorldSettings


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run("cross-modal-detector")


def test_a_rig_is_predicted_and_drawn(run, tmp_path):
    frames = a_rig(tmp_path)[0]
    line = json.loads(predict(str(run), [str(frames)], out=str(tmp_path / "out"), threshold=0.0))
    assert line["token"] == "0" and len(line["boxes"]) > 3 and set(line["boxes"][0]) >= {"class", "score", "centre"}
    assert [(tmp_path / "out" / name).stat().st_size > 500 for name in ("0-above.png", "0-images.png")] == [True, True]
    (tmp_path / "left.png").unlink()
    with pytest.raises(UserError, match=r"left\.png"):
        predict(str(run), [str(frames)])
    lost = [predict(str(run), [str(frames)], missing_files="missing", missing=m, threshold=0) for m in ("zero", "drop")]
    assert json.loads(lost[0])["boxes"] != json.loads(lost[1])["boxes"]


def test_the_robustness_table_has_every_case(run, tmp_path):
    text = VERBS["robustness"](str(run), frames=2, out=str(tmp_path / "r.json"))
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 1 + 2 * (2 + 6) + 3 * len(CORRUPTIONS) and len(CORRUPTIONS) == 10
    assert "no LiDAR, zero" in text and "spatial misalignment" in text and "missing cameras, drop" in text


@pytest.mark.parametrize("name", ["image", "lidar"])
def test_detectors_of_one_sensor_are_exported(name, tmp_path):
    torch.manual_seed(0)
    options = {"area": (-8, -8, -3, 8, 8, 3), "classes": 2, "dim": 16, "heads": 2, "queries": 8, "layers": 1,
               "depths": 4, "pillar_grid": (16, 16), "pillar_width": 8}  # fmt: skip
    detector = build_small(**options | {"lidar" if name == "image" else "image": False}).eval()
    if name == "lidar":
        done = export_detector(
            detector, tmp_path / "model.onnx", views=2, image_size=(32, 48), metadata={"system": "x"}
        )
        assert done.max_difference < 1e-3
    inputs, names = example_inputs(detector, 2, (32, 48))
    assert names == (["images", "lidar_to_image", "image_to_lidar"] if name == "image" else ["grid"])
    with torch.no_grad():
        scores, boxes = DenseDetector(detector)(*inputs)
    assert scores.shape == (1, 8, 2) and boxes.shape == (1, 8, 9)


def test_the_dense_part_is_the_detector(run):
    served = tenfold.load(run)
    frames = NuScenesTables(run / "steps/world", VERSION).frames("test")
    sample = served.read(frames[0])
    from tenfold.systems.cross_modal_detector.augmentation.pipeline import testing_batch

    batch = testing_batch([sample], served.pipeline).sensors
    with torch.no_grad():
        whole = served.detector(batch)
        inverse = torch.linalg.inv(batch.lidar_to_image)
        dense = DenseDetector(served.detector)(
            batch.images, batch.lidar_to_image, inverse, grid_of(served.detector, batch.points)
        )
    torch.testing.assert_close(dense[0], whole.logits[0][-1].sigmoid(), rtol=1e-4, atol=1e-5)
    assert export(str(run), to="safetensors", out=str(run / "again"))["safetensors"]


def test_an_official_checkpoint_becomes_a_model(tmp_path):
    with pytest.raises(UserError, match="no configuration 'cmt_huge'"):
        import_official("x.pth", configuration="cmt_huge")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        import_official(
            str(tmp_path / "bad.pth"), configuration="cmt_lidar_voxel0075_cbgs", out=str(tmp_path / "model")
        )
    assert not (tmp_path / "model").exists()


def outcome(both, without, seed):
    draw = np.random.default_rng(seed)
    cases = {"both": both, "no LiDAR, zero": without, "no LiDAR, drop": without, "no cameras, zero": without,
             "no cameras, drop": without, "no CAM_FRONT, zero": both, "no CAM_FRONT, drop": both}  # fmt: skip
    return {
        "cases": {name: {"ap_2m": ap, "mean_ap": ap, "nds": ap} for name, ap in cases.items()},
        "bootstrap": {name: (ap + 0.01 * draw.standard_normal(50)).tolist() for name, ap in cases.items()},
    }


def test_claims_follow_from_the_numbers():
    for seeds in (1, 3):
        outcomes = {
            "plain": [outcome(0.7 + 0.01 * n, 0.1, n) for n in range(seeds)],
            "masked": [outcome(0.71 + 0.01 * n, 0.5, n) for n in range(seeds)],
        }
        found = {claim.id: claim for claim in claims_of(outcomes)}
        assert found["gate"].verdict == "holds" and found["gate"].value == pytest.approx(70 + seeds, abs=1)
        assert found["all-sensors"].verdict == "holds" and found["no-lidar-drop"].verdict == "holds"
        kept = found["kept-no-lidar-drop"]
        assert kept.verdict == ("not settled" if seeds == 1 else "holds") and "61 %" in kept.statement
        assert "0.500 without LiDAR" in summary_of(outcomes)


def test_presets_are_the_official_settings():
    paper = PRESETS["paper"]
    assert (paper.optimizer.learning_rate, paper.optimizer.peak, paper.optimizer.epochs) == (1e-4, 8.0, 20)
    assert (paper.augmentation.fading, paper.augmentation.grid_mask, paper.trainer.gradient_clip) == (5, 0.7, 35.0)
    r50 = PRESETS["paper-r50"]
    assert (r50.optimizer.learning_rate, r50.optimizer.peak, r50.augmentation.image_factors) == (
        1.4e-4,
        6.0,
        [0.47, 0.625],
    )
    assert PRESETS["paper-camera"].augmentation.translation == 0 and "cross-modal-detector" in CASES


def test_missing_points_of_the_world_are_refused(tmp_path):
    root = write_world(tmp_path, WorldSettings({"train": 1}, columns=8, beams=2, sweeps=0, objects=(1, 1)))
    frame = NuScenesTables(root, VERSION).frames("train")[0]
    frame.points.unlink()
    with pytest.raises(UserError, match=r"cannot read .*pcd\.bin"):
        read_frame(frame, WORLD_CLASSES)
