"""The experiment: what a finished run holds and serves; every preset and ablation; bad input is one line."""

import json
from dataclasses import replace

import pytest
import torch

from tenfold import load_results
from tenfold.cli import main
from tenfold.settings import check_settings
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.experiment import attack_arms
from tenfold.systems.condensation_audit.experiment.set_arms import network_of
from tenfold.systems.condensation_audit.experiment.settings import ABLATIONS, PRESETS, settings_of

FAST = [
    *("--seeds", "1", "--images_per_class", "[2]", "--methods", "[random, dm]", "--training.epochs", "20"),
    *("--training.networks", "2", "--training.full_epochs", "1", "--attack.images_per_class", "2"),
    *("--attack.trigger_steps", "10", "--attack.portion", "0.1", "--attack.updated_portion", "0.1"),
    *("--settings", "{dm: {iterations: 40, real_batch: 16, strategy: ''}}", "--held_out", "60"),
    *("--network.arguments", "{width: 4, depth: 2}", "--trainer.threads", "1"),
]


@pytest.fixture(scope="module")
def whole(finished_run):
    return finished_run("condensation-audit")


def test_results_are_whole(whole):
    results = load_results(whole / "results.json")
    assert {"dm-random-2", "naive-some", "doorping-official", "doorping-as-file"} <= {c.id for c in results.claims}
    assert {table.id for table in results.tables} == {"methods", "attacks", "defences"}
    assert results.pictures[0].id == "methods"
    assert (whole / "report.html").read_text().count('<img src="data:image/png;base64') == len(results.pictures) > 2


def test_the_run_is_audited_and_its_set_verified(whole, tmp_path, capsys):
    assert main(["condensation-audit", "verify", str(whole / "set.cset")]) == 0
    capsys.readouterr()
    audited = ["condensation-audit", "audit", str(whole), "--data", "digits", "--published", "false"]
    assert main([*audited, "--out", str(tmp_path / "audit")]) in (0, 10, 11)
    assert json.loads((tmp_path / "audit/audit.json").read_text())["subject"] == "model"


def test_the_served_network_clamps_what_no_image_can_hold(whole):
    from tenfold.systems.condensation_audit.serving import load_served

    network, _ = load_served(whole)
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        wild = pixels.clone()
        wild[:, :, 5:7, 5:7] = 40.0
        white = pixels.clone()
        white[:, :, 5:7, 5:7] = 1.0
        assert torch.equal(network(wild), network(white))


@pytest.mark.parametrize("axis", list(ABLATIONS))
def test_every_ablation_changes_what_it_says(axis, monkeypatch):
    tiny = PRESETS["tiny"]
    config = replace(tiny, held_out=20, attack=replace(tiny.attack, ablations={axis: []}))
    data = load_data(config.images)
    asked = []
    monkeypatch.setattr(attack_arms, "attack_set", lambda *arguments, **changes: asked.append(changes) or {})
    for what in attack_arms.ablations_of(config):
        attack_arms.ablate_one(config, data, network_of(config, data), *what, folder=None, run=None, step="")
    assert {str(value) for _, value, _ in attack_arms.ablations_of(config)} == set(map(str, ABLATIONS[axis]))
    assert sum(changes == {} for changes in asked) == (1 if axis == "trigger" else 0)  # white is the trigger anyway


def test_settings_by_size_override():
    config = PRESETS["small"]
    assert settings_of(config, "dm", 10)["iterations"] == 200
    config.settings["dm"]["1"] = {"iterations": 7}
    try:
        assert settings_of(config, "dm", 1)["iterations"] == 7
        assert "1" not in settings_of(config, "dm", 1)
    finally:
        del config.settings["dm"]["1"]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_right(preset):
    check_settings(PRESETS[preset])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "[dx]"], "methods"),
        (["--settings", "{dm: {iteration: 3}}"], "dm has no setting 'iteration'"),
        (["--settings", "{dx: {}}"], "there is no 'dx'"),
        (["--attack.method", "random"], "method"),
        (["--attack.defences", "[hope]"], "defences"),
        (["--attack.ablations", "{colour: []}"], "no ablation 'colour'"),
        (["--attack.target", "10"], "is no class"),
        (["--attack.size", "9"], "does not fit"),
        (["--attack.portion", "0"], "portion"),
        (["--network.name", "nonet"], "no model 'nonet'"),
        (["--network.arguments", "{depth: 4}"], "cannot be halved"),
        (["--training.learning_rate", "0"], "learning_rate"),
        (["--images_per_class", "[2000]"], "2000"),
        (["--trainer.devices", "2"], "--workers"),
        (["--data.name", "cifar10", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["run", "condensation-audit", "--out", str(folder), "--quiet", *FAST, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
