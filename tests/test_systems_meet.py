"""A model of any run is a model for every system that takes one, and every training leaves results that compare."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import tenfold
from tenfold.cli import main
from tenfold.data import digits
from tenfold.errors import UserError
from tenfold.systems.condensation_audit.networks.factories import seeded_network, untrained_like

pytest.importorskip("timm")
VIT = "{img_size: 8, patch_size: 2, in_chans: 1, embed_dim: 16, depth: 2, num_heads: 2, drop_rate: 0.1}"


@pytest.fixture(scope="module")
def exits(tmp_path_factory):
    """A run of boosted exits on a vision transformer of timm, of one epoch."""
    folder = tmp_path_factory.mktemp("meet") / "b1"
    network = ["--model.name", "timm/vit_tiny_patch16_224", "--model.taps", "[blocks.0]", "--model.arguments", VIT]
    short = ["--seeds", "1", "--arms", "[]", "--optimizer.epochs", "1", "--workers", "1", "--quiet"]
    assert main(["run", "boosted-exits", "--out", str(folder), *network, *short]) == 0
    return folder


@pytest.fixture
def images(tmp_path):
    """Digits as a folder of files, and as an array."""
    from PIL import Image

    found = digits()
    for number in range(60):
        place = tmp_path / "images" / str(int(found.labels[number]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found.images[number, 0].numpy()).save(place / f"{number}.png")
    np.save(tmp_path / "rows.npy", found.images[:60].numpy())
    return tmp_path


def call(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


# A test of a system's run stands in that system's group (tests/conftest.py), whose run is there already.
boosted_exits = pytest.mark.parametrize("system", ["boosted-exits"])
each_of_images = pytest.mark.parametrize("system", ["boosted-exits", "activation-uncertainty", "condensation-audit"])


@each_of_images
def test_the_plain_network_of_a_run_is_there_for_others(system, finished_run):
    network, preprocessing = tenfold.load_network(finished_run(system))
    assert network(preprocessing.normalize(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))).shape == (2, 10)


@pytest.mark.parametrize("system", ["query-summarizer"])
def test_what_is_no_network_says_so(system, finished_run):
    with pytest.raises(UserError, match="no network"):
        tenfold.load_network(finished_run(system))


@boosted_exits
def test_a_run_with_exits_gets_an_uncertainty_teaches_and_is_compared_with_its_student(system, exits, images, capsys):
    network, preprocessing = tenfold.load_network(exits)
    assert type(network).__name__ == "VisionTransformer" and preprocessing.image_shape == (1, 8, 8)
    code, _, err = call(capsys, "activation-uncertainty", "label", exits, images / "rows.npy",
                        "--out", images / "labels", "--passes", 5)  # fmt: skip
    assert code == 0, err
    student = images / "ft1"
    code, _, err = call(capsys, "relation-distillation", "distil", "digits", exits, "16x2x2", "--out", student,
                        "--patch", 2, "--epochs", 1, "--quiet", "true")  # fmt: skip
    assert code == 0, err
    assert json.loads((student / "model.json").read_text())["extra"]["teacher"] == str(exits)
    code, _, err = call(capsys, "report", exits, student, "--out", images / "both.html")
    assert code == 0 and "differ in system" in err, err
    assert "distil" in (images / "both.html").read_text()


@boosted_exits
def test_what_has_no_attention_does_not_teach(system, finished_run, images, capsys):
    code, _, err = call(capsys, "relation-distillation", "distil", "digits", finished_run(system), "16x2x2",
                        "--out", images / "ft", "--patch", 2, "--epochs", 1)  # fmt: skip
    assert code == 2 and err.count("\n") == 1 and "without attention layers" in err
    assert not (images / "ft").exists()


@boosted_exits
def test_a_network_of_another_system_is_audited(system, finished_run, images, capsys):
    code, _, err = call(capsys, "condensation-audit", "audit", finished_run(system), "--data", "digits",
                        "--published", "false", "--out", images / "audit")  # fmt: skip
    assert code in (0, 10, 11, 12, 13) and (images / "audit/report.html").exists(), err


def test_an_untrained_network_like_another_draws_all_of_its_parameters():
    trained = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    nn.init.zeros_(trained[0].weight)
    one, again = (seeded_network(lambda: untrained_like(trained), 3) for _ in range(2))
    assert one[0].weight.abs().min() > 0 and trained[0].weight.abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    trained.own = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    with pytest.raises(UserError, match="ParameterList 'own'"):
        untrained_like(trained)
