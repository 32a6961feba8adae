"""The experiment end to end: killed and resumed, delivered, served, audited; bad input is one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold import load_results
from tenfold.cli import main
from tenfold.systems.condensation_audit.data.load import load_data
from tenfold.systems.condensation_audit.experiment import attack_arms
from tenfold.systems.condensation_audit.experiment.set_arms import network_of
from tenfold.systems.condensation_audit.experiment.settings import ABLATIONS, PRESETS, check, settings_of

FAST = [
    *("--seeds", "1", "--images_per_class", "[2]", "--methods", "[random, dm]", "--training.epochs", "20"),
    *("--training.networks", "2", "--training.full_epochs", "1", "--attack.images_per_class", "2"),
    *("--attack.trigger_steps", "10", "--attack.portion", "0.1", "--attack.updated_portion", "0.1"),
    *("--settings", "{dm: {iterations: 40, real_batch: 16, strategy: ''}}", "--held_out", "60"),
    *("--network.arguments", "{width: 4, depth: 2}", "--trainer.threads", "1"),
]
SECONDS = {"seconds", "training_seconds"}


def start(folder, *arguments):
    command = [sys.executable, "-m", "tenfold", "run", "condensation-audit", "--out", str(folder), "--quiet", *FAST]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    for table in results["tables"]:
        if "seconds" in table["columns"]:
            place = table["columns"].index("seconds")
            for row in table["rows"]:
                row[place] = None
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables", "pictures")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("condensation") / "whole"
    finish(start(folder))
    return folder


def test_results_are_whole(whole):
    results = load_results(whole / "results.json")
    assert {"dm-random-2", "naive-some", "doorping-official", "doorping-as-file"} <= {c.id for c in results.claims}
    assert {table.id for table in results.tables} == {"methods", "attacks", "defences"}
    assert results.pictures[0].id == "methods"
    assert (whole / "report.html").read_text().count('<img src="data:image/png;base64') == len(results.pictures) > 2


def test_a_killed_run_resumes_to_the_same_numbers(whole, tmp_path):
    folder = tmp_path / "killed"
    process = start(folder)
    # In the middle of the condensation under attack: the trigger must come back, too.
    while not (folder / "steps/attacks/doorping/seed0/condensation.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    finish(start(folder, "--resume"))
    assert numbers(folder) == numbers(whole)


def test_the_run_is_served(whole, tmp_path, capsys):
    assert main(["evaluate", str(whole)]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == 397
    assert main(["export", str(whole), "--out", str(tmp_path / "onnx")]) == 0
    assert json.loads(capsys.readouterr().out)["largest_difference"] < 1e-4
    image = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(image)
    assert main(["predict", str(whole), str(image)]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in "0123456789"
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


def test_verbs_make_sets_and_mark_poisoned_ones(tmp_path, capsys):
    settings = ["--settings", '{"iterations": 5, "real_batch": 16}', "--networks", "1", "--recipe", '{"epochs": 5}']
    small = ["--arguments", '{"width": 4, "depth": 2}', "--images_per_class", "2", *settings]
    clean, poisoned = str(tmp_path / "clean.cset"), str(tmp_path / "poisoned.cset")
    assert main(["condensation-audit", "condense", "--out", clean, *small]) == 0
    assert main(["condensation-audit", "redteam", "--out", poisoned, "--portion", "0.1", *small]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["poisoned"] is True
    assert main(["condensation-audit", "quality", clean, "--networks", '{"mlp": {}}', "--seeds", "1"]) == 0
    assert "mlp" in json.loads(capsys.readouterr().out)
    assert main(["condensation-audit", "quality", poisoned, "--seeds", "1"]) == 2
    assert "poisoned" in capsys.readouterr().err


@pytest.mark.parametrize("axis", list(ABLATIONS))
def test_every_ablation_changes_what_it_says(axis, monkeypatch):
    tiny = PRESETS["tiny"]
    config = replace(tiny, held_out=20, attack=replace(tiny.attack, ablations={axis: []}))
    data = load_data(config.data)
    asked = []
    monkeypatch.setattr(attack_arms, "attack_set", lambda *arguments, **changes: asked.append(changes) or {})
    for what in attack_arms.ablations_of(config):
        attack_arms.ablate_one(config, data, network_of(config, data), *what, folder=None, run=None, step="")
    assert {str(value) for _, value, _ in attack_arms.ablations_of(config)} == set(map(str, ABLATIONS[axis]))
    assert sum(changes == {} for changes in asked) == (1 if axis == "trigger" else 0)  # white is the trigger anyway


def test_two_processes_give_the_numbers_of_one(whole, tmp_path):
    folder = tmp_path / "shared"
    finish(start(folder, "--workers", "2"))
    assert numbers(folder) == numbers(whole)


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
    check(PRESETS[preset])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "[dx]"], "no method 'dx'"),
        (["--settings", "{dm: {iteration: 3}}"], "dm has no setting 'iteration'"),
        (["--settings", "{dx: {}}"], "there is no 'dx'"),
        (["--attack.method", "random"], "must be a condenser"),
        (["--attack.defences", "[hope]"], "no defence 'hope'"),
        (["--attack.ablations", "{colour: []}"], "no ablation 'colour'"),
        (["--attack.target", "10"], "is no class"),
        (["--attack.size", "9"], "does not fit"),
        (["--attack.portion", "0"], "portion"),
        (["--network.name", "nonet"], "no model 'nonet'"),
        (["--network.arguments", "{depth: 4}"], "cannot be halved"),
        (["--training.learning_rate", "0"], "learning rate above 0"),
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
