import json

import pytest
import torch
from torch import nn

from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.data.scenes import make_scenes
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite
from tenfold.systems.backbone_search.mapping.map_weights import map_weights
from tenfold.systems.backbone_search.method import CandidateOptions, DetectorSearch
from tenfold.systems.backbone_search.space.mobile_space import SMALL_SEED, MobileSpace
from tenfold.systems.backbone_search.training.moving_average import DetectionObjective, decay_after
from tenfold.systems.backbone_search.training.options import DetectorTraining
from tenfold.systems.backbone_search.training.train_detector import learning_rates, parameter_groups

SPACE = MobileSpace(SMALL_SEED, per_stage=True)
TEMPLATE = DetectorPlan(SPACE.plan(SPACE.scaled(width=0.5, expansion=0.5, shallower=2)), 3, (16, 16, 16), 16)


def test_the_published_schedule():
    rate = learning_rates(DetectorTraining(epochs=10, warmup_epochs=2, plain_epochs=3), 10)
    assert rate(0) == pytest.approx(1 / 400) and rate(9) == pytest.approx(0.25) and rate(19) == 1
    assert rate(20) == 1 and rate(45) == pytest.approx(0.05 + 0.475) and 0.05 < rate(69) < 0.06
    assert [rate(step) for step in (70, 85, 99)] == [0.05] * 3
    groups = parameter_groups(YOLOXLite(TEMPLATE), 5e-4)
    assert all(p.ndim == 4 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
    assert groups[0]["weight_decay"] == 5e-4 and groups[1]["weight_decay"] == 0


def test_the_moving_average_follows_at_once_in_short_trainings():
    assert decay_after(26) == pytest.approx(0.013, abs=1e-3) and decay_after(520) == pytest.approx(0.23, abs=2e-3)
    model = nn.BatchNorm1d(2)
    objective = DetectionObjective(model, True)
    before = objective.average.running_var.clone()
    with torch.no_grad():
        model.running_var.fill_(5)
        model.num_batches_tracked.fill_(7)
    objective.steps += 520
    objective.update(model)
    decay = decay_after(520)
    assert torch.allclose(objective.average.running_var, decay * before + (1 - decay) * 5)
    assert objective.average.num_batches_tracked == 7


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    images = LetterboxedImages(make_scenes(6, 0, 32, 64), 32, 64)
    torch.manual_seed(0)
    tuning = DetectorTraining(epochs=1, batch_size=4, warmup_epochs=0, average=False)
    made = DetectorSearch(SPACE, TEMPLATE, YOLOXLite(TEMPLATE).eval(), images, images, tuning)
    made.weights = tmp_path_factory.mktemp("weights")
    return made


def test_a_candidate_ends_with_statistics_of_its_own(search):
    genome = SPACE.scaled(width=0.5, expansion=0.5, shallower=1)
    digest = SPACE.digest(genome)
    model, details = search.tuned(genome, digest)
    own = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    assert 0 < details["inherited"] <= 1
    search.estimate(model, genome)  # again: nothing changes
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items() if name in own)


def test_duplicates_return_the_stored_score_and_children_inherit_from_the_nearest(search, tmp_path):
    parent = SPACE.scaled(width=0.5, expansion=0.5)
    digest = SPACE.digest(parent)
    first = search.evaluate(parent, digest)
    search.cache = tmp_path
    (tmp_path / f"{digest}.json").write_text(json.dumps({"score": 0.5, "details": {"seconds": 1}}))
    assert search.evaluate(parent, digest).score == 0.5 != first.score
    search.cache = None
    child = {**parent, "s4.expand": 4}
    search.options = CandidateOptions(inherit="parent")
    inherited, _ = search.prepared(child, 3)
    from safetensors.torch import load_file

    tuned = YOLOXLite(search.plan(parent))
    tuned.load_state_dict(load_file(search.weights / f"{digest}.safetensors"))
    torch.manual_seed(3)
    wanted = YOLOXLite(search.plan(child))
    map_weights(tuned, wanted, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), inherited.parameters(), strict=True))
