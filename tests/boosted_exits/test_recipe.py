"""The experiment end to end: killed and resumed, in two processes, on a user's network."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenfold import load_results
from tenfold.cli import main

SHARED = Path(__file__).parents[1] / "shared"
FAST = ["--seeds", "1", "--optimizer.epochs", "3", "--arms", "[joint]", "--model.arguments", "{widths: [4, 4, 6]}"]


def start(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SHARED)}
    command = [
        sys.executable,
        "-m",
        "tenfold",
        "run",
        "boosted-exits",
        "--out",
        str(folder),
        "--quiet",
        *FAST,
        *arguments,
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    for values in results["metrics"].values():
        values.pop("train_seconds")
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "whole"
    finish(start(folder))
    return folder


# In the middle of the first arm; between its end and the end of the second.
@pytest.mark.parametrize("sign", ["steps/joint/seed0/last.ckpt", "steps/joint/seed0/result.json"])
def test_killed_run_resumes_to_the_same_numbers(whole, tmp_path, sign):
    folder = tmp_path / "killed"
    process = start(folder, "--trainer.checkpoint_steps", "2")
    while not (folder / sign).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    finish(start(folder, "--trainer.checkpoint_steps", "2", "--resume"))
    assert numbers(folder) == numbers(whole)


def test_two_processes_agree_with_one(tmp_path):
    """Order, augmentation, batch statistics, moving averages and evaluation are those of one process."""
    options = ["--method.equalise", "true", "--data.augment", "flip", "--optimizer.learning_rate", "0.02"]
    finish(start(tmp_path / "one", *options))
    finish(start(tmp_path / "two", *options, "--trainer.devices", "2"))
    one, two = (load_results(tmp_path / name / "results.json") for name in ("one", "two"))
    histories = [
        json.loads((tmp_path / name / "steps/boosted/seed0/result.json").read_text())["history"]
        for name in ("one", "two")
    ]
    for first, second in zip(*histories, strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=5e-3)
    for arm in one.metrics:
        # Rounding differs; of 397 test images at most three may tip over.
        assert one.metrics[arm]["accuracy"] == pytest.approx(two.metrics[arm]["accuracy"], abs=0.8)


def test_the_best_epoch_is_that_of_the_area_on_validation(whole):
    for result in whole.glob("steps/*/seed0/result.json"):
        outcome = json.loads(result.read_text())
        areas = [row["validation/area"] for row in outcome["history"]]
        assert outcome["best_epoch"] == areas.index(max(areas)) + 1


def test_arms_start_from_the_same_weights_and_see_the_same_images(whole):
    first = {
        arm: json.loads((whole / f"steps/{arm}/seed0/result.json").read_text())["history"][0]["train/loss1"]
        for arm in ("joint", "boosted")
    }
    # The first exit's loss is the same in both arms at the first step and drifts apart only by what is learnt.
    assert first["joint"] == pytest.approx(first["boosted"], rel=0.2)


@pytest.mark.parametrize("mode", ["joint", "heads", "finetune"])
def test_a_network_of_the_users_own(tmp_path, monkeypatch, capsys, mode):
    monkeypatch.syspath_prepend(str(SHARED))
    factory = "networks_for_tests:sequential"
    arguments = [
        "--model.name",
        "factory",
        "--model.factory",
        factory,
        "--model.taps",
        "['0', '1']",
        "--model.mode",
        mode,
    ]
    settings = ["--seeds", "1", "--optimizer.epochs", "1", "--arms", "[joint]", "--quiet"]
    assert main(["run", "boosted-exits", "--out", str(tmp_path / "run"), *arguments, *settings]) == 0
    results = load_results(tmp_path / "run" / "results.json")
    assert len(results.metrics["boosted"]["accuracy"]) == 3
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2  # a manifest alone runs no code
    assert "--factory" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--factory", factory]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["accuracy"] == pytest.approx(results.metrics["boosted"]["accuracy"], abs=1e-3)


def test_a_folder_of_images_and_a_torchvision_network(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "grey", "bright")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(80 * label, 80 * label + 40, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    data = [
        "--data.name",
        "folder",
        "--data.root",
        str(tmp_path / "photos"),
        "--data.validation",
        "6",
        "--data.augment",
        "imagenet",
        "--data.image_size",
        "32",
        "--data.workers",
        "1",
    ]
    network = ["--model.name", "torchvision/resnet18", "--model.taps", "[layer1, layer2]"]
    settings = [
        "--seeds",
        "1",
        "--optimizer.epochs",
        "1",
        "--optimizer.batch_size",
        "8",
        "--arms",
        "[joint]",
        "--quiet",
    ]
    assert main(["run", "boosted-exits", "--out", str(tmp_path / "run"), *data, *network, *settings]) == 0
    results = load_results(tmp_path / "run" / "results.json")
    assert len(results.metrics["boosted"]["accuracy"]) == 3
    assert results.cost.flops > 1e7
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "photos" / "dark" / "0.png")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("dark", "grey", "bright")
