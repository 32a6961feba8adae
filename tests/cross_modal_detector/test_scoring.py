"""Scores equal nuscenes-devkit's. ``devkit.json`` is what version 1.2.0 gave for ``nuscenes_for_tests``' set."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nuscenes_for_tests import VERSION, random_results, write_tables

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector import NUSCENES, Detections, NuScenesTables, read_results, score_boxes
from tenfold.systems.cross_modal_detector.cli import VERBS
from tenfold.systems.cross_modal_detector.robustness.cases import bootstrapped_ap
from tenfold.systems.cross_modal_detector.scoring.results import (
    attribute_of,
    detections_table,
    truth_table,
    write_results,
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes")
    write_tables(root)
    random_results(root, root / "results.json")
    return root


@pytest.fixture(scope="module")
def frames(tables):
    return NuScenesTables(tables, VERSION).frames("some")


def test_scores_are_the_devkits(tables):
    ours = VERBS["score"](
        str(tables / "results.json"), root=str(tables), version=VERSION, test="some", by_distance=[0, 20, 50]
    )
    theirs = json.loads((Path(__file__).parent / "devkit.json").read_text())
    for name in ("mean_ap", "nd_score"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9)
    for kind in ("label_aps", "label_tp_errors"):
        for name, row in theirs[kind].items():
            for key, value in row.items():
                found = ours[kind][name][key]
                assert math.isnan(found) if value is None else found == pytest.approx(value, abs=1e-9), (name, key)
    assert theirs["label_aps"]["trailer"] == dict.fromkeys(("0.5", "1.0", "2.0", "4.0"), 0.0)  # absent, in the mean
    assert set(ours["by_distance"]) == {"0-20", "20-50"} and ours["by_distance"]["0-20"]["mean"] > 0


def as_detections(frame, score=1.0):
    known = [n for n, name in enumerate(frame.names) if name in NUSCENES.classes]
    boxes = torch.from_numpy(np.nan_to_num(frame.boxes[known]))
    labels = torch.tensor([NUSCENES.classes.index(frame.names[n]) for n in known])
    return Detections(boxes, torch.full((len(known),), score), labels)


def test_perfect_predictions_survive_a_result_file(frames, tmp_path):
    found = [as_detections(frame) for frame in frames]
    write_results(tmp_path / "r.json", frames, found, NUSCENES.classes, NUSCENES, camera=True, lidar=True)
    present = replace(NUSCENES, classes=tuple(name for name in NUSCENES.classes if name != "trailer"))
    content = json.loads((tmp_path / "r.json").read_text())
    assert set(content["results"]) == {frame.token for frame in frames}
    box = next(row for rows in content["results"].values() for row in rows)
    assert set(box) == {"sample_token", "translation", "size", "rotation", "velocity", "detection_name",
                        "detection_score", "attribute_name"}  # fmt: skip
    scores = score_boxes(truth_table(frames, present), read_results(tmp_path / "r.json", frames, present), present)
    # Boxes without a point are no truth, but were predicted: precision is not 1, errors are 0.
    assert scores.mean_errors["trans_err"] == pytest.approx(0, abs=1e-6) and scores.mean_errors["scale_err"] < 1e-6
    kept = [replace(frame, num_points=np.full(len(frame.names), 5)) for frame in frames]
    whole = score_boxes(truth_table(kept, present), read_results(tmp_path / "r.json", kept, present), present)
    assert whole.mean_ap == pytest.approx(1.0) and whole.nds > 0.9


def test_a_later_row_of_equal_score_comes_first(frames):
    frame = replace(frames[0], num_points=np.full(len(frames[0].names), 5))
    found = as_detections(frame)
    car = int((found.labels == NUSCENES.classes.index("car")).nonzero()[0])
    exact = found.boxes[car : car + 1] * torch.tensor([0.0] * 2 + [1.0] * 7, dtype=torch.float64)
    near = exact + torch.tensor([0.4] + [0.0] * 8)
    labels, scores = found.labels[car].repeat(2), torch.ones(2)
    for boxes, expected in ((torch.cat((near, exact)), 0.0), (torch.cat((exact, near)), 0.4)):
        only = replace(frame, boxes=exact.numpy(), names=("car",), num_points=np.array([5]), attributes=())
        table = detections_table([only], [Detections(boxes, scores, labels)], NUSCENES.classes, NUSCENES)
        result = score_boxes(truth_table([only], NUSCENES), table, NUSCENES)
        assert result.errors["car"]["trans_err"] == pytest.approx(expected, abs=1e-5)


def test_nothing_found_and_frames_without_truth_are_scored(frames):
    empty = Detections(torch.zeros(0, 9), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    table = detections_table(frames, [empty] * len(frames), NUSCENES.classes, NUSCENES)
    assert score_boxes(truth_table(frames, NUSCENES), table, NUSCENES).nds == 0
    bare = [replace(frame, boxes=np.zeros((0, 9)), names=(), num_points=None, attributes=()) for frame in frames]
    found = detections_table(frames, [as_detections(frame) for frame in frames], NUSCENES.classes, NUSCENES)
    assert score_boxes(truth_table(bare, NUSCENES), found, NUSCENES).mean_ap == 0


def test_bootstrap_lies_around_the_score(tables, frames):
    truth, found = truth_table(frames, NUSCENES), read_results(tables / "results.json", frames, NUSCENES)
    whole = score_boxes(truth, found, NUSCENES).ap_at(2.0)
    drawn = bootstrapped_ap(truth, found, NUSCENES, len(frames), 40, seed=0)
    assert drawn.shape == (40,) and drawn.min() < whole < drawn.max() * 1.2


def test_attributes_by_rule():
    found = [attribute_of(name, speed) for name, speed in (("car", 1), ("car", 0.1), ("bus", 0), ("bicycle", 0.3),
             ("motorcycle", 0), ("pedestrian", 0.1), ("barrier", 5))]  # fmt: skip
    assert found == ["vehicle.moving", "vehicle.parked", "vehicle.stopped", "cycle.with_rider", "cycle.without_rider",
                     "pedestrian.standing", ""]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: r.pop(next(iter(r))), "lacks 1 samples"),
        (lambda r: r.update(strange=[]), "not of the split"),
        (lambda r: next(iter(r.values()))[0].update(detection_name="tram"), "tram"),
        (lambda r: next(iter(r.values()))[0].update(size=[1, 0, 1]), "not above 0"),
        (lambda r: next(iter(r.values()))[0].update(rotation=[0, 0, 0, 0]), "quaternion"),
        (lambda r: next(iter(r.values()))[0].pop("velocity"), "velocity"),
        (lambda r: next(iter(r.values()))[0].update(attribute_name="flying"), "flying"),
    ],
)
def test_wrong_result_files_are_refused(tables, frames, tmp_path, change, word):
    content = json.loads((tables / "results.json").read_text())
    change(content["results"])
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=word):
        read_results(tmp_path / "wrong.json", frames, NUSCENES)


def test_nuscenes_own_splits_are_whole():
    from tenfold.systems.cross_modal_detector.sets.nuscenes_splits import SIZES, scenes_of

    parts = {name: scenes_of(name) for name in SIZES}
    assert {name: len(part) for name, part in parts.items()} == SIZES
    assert len({*parts["train"], *parts["val"], *parts["test"]}) == 1000  # no scene is in two
    assert {*parts["mini_train"], *parts["mini_val"]} <= {*parts["train"], *parts["val"]}
