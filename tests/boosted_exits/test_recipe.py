"""The experiment: in two processes, on a user's network and photos, and what its numbers say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import BROKEN
from warm import TENFOLD, on_two_processes

import tenfold
from tenfold import load_results
from tenfold.cli import main
from tenfold.systems.boosted_exits import ExitRecords, evaluate_policy
from tenfold.systems.boosted_exits.experiment.measure import example_scores
from tenfold.systems.boosted_exits.policies.metrics import area_under_curve

FAST = ["--seeds", "1", "--optimizer.epochs", "2", "--arms", "[joint]", "--model.arguments", "{widths: [4, 4, 6]}"]
ONE_PROCESS = ["--workers", "1", "--quiet"]


def here(folder, *arguments):
    """A run in this process, which has imported everything."""
    assert main(["run", "boosted-exits", "--out", str(folder), *ONE_PROCESS, *map(str, arguments)]) == 0
    return load_results(Path(folder) / "results.json")


@pytest.fixture
def whole(finished_run):
    return finished_run("boosted-exits")


def test_two_processes_agree_with_one(tmp_path):
    """Order, augmentation, batch statistics, moving averages and evaluation are those of one process."""
    options = ["--method.equalise", "true", "--data.augment", "flip", "--optimizer.learning_rate", "0.02"]
    command = ["tenfold", "run", "boosted-exits", "--out", tmp_path / "two", *ONE_PROCESS, *FAST, *options]
    two = on_two_processes(TENFOLD, [*command, "--trainer.devices", "2"])
    one = here(tmp_path / "one", *FAST, *options)
    two.out()
    both = load_results(tmp_path / "two" / "results.json")
    histories = [
        json.loads((tmp_path / name / "steps/boosted/seed0/result.json").read_text())["history"]
        for name in ("one", "two")
    ]
    for first, second in zip(*histories, strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=5e-3)
    for arm in one.metrics:
        # Rounding differs; of 397 test images at most three may tip over.
        assert one.metrics[arm]["accuracy"] == pytest.approx(both.metrics[arm]["accuracy"], abs=0.8)


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


def test_one_seed_has_intervals_over_test_images_and_a_summary(whole):
    results = load_results(whole / "results.json")
    for claim in results.claims:
        assert (claim.interval is None) == (not claim.chance)
        assert claim.interval is None or claim.interval[0] <= claim.value <= claim.interval[1]
    assert f"{results.plots[0].id}" == "anytime" and "%" in results.summary
    for result in whole.glob("steps/*/seed0/result.json"):
        outcome = json.loads(result.read_text())
        assert np.mean(outcome["examples"]["area"]) == pytest.approx(outcome["area"], abs=1e-3)
        assert np.mean(outcome["examples"]["last"]) == pytest.approx(outcome["accuracy"][-1], abs=1e-3)


def test_scores_of_images_have_the_compared_numbers_as_their_means():
    generator = torch.Generator().manual_seed(0)
    confidences, correct = torch.rand(50, 3, generator=generator), torch.rand(50, 3, generator=generator) < 0.6
    test = ExitRecords(confidences, correct, (1.0, 2.5, 4.0))
    searched = [evaluate_policy(test, (threshold, 0.5, -1e8)) for threshold in (0.2, 0.7)]
    family = [evaluate_policy(test, (threshold, threshold, -1e8)) for threshold in (0.1, 0.5, 0.9)]
    scores = {name: np.mean(values) for name, values in example_scores(test, searched, family).items()}
    share = correct.double().mean(0)
    at = np.interp([s.cost for s in searched], [f.cost for f in family], [f.accuracy for f in family])
    expected = {
        "area": area_under_curve(test.costs, share),
        "later": share[1],
        "last": share[2],
        "first": share[0],
        "budgeted": np.mean([s.accuracy for s in searched]),
        "search_gain": np.mean([s.accuracy for s in searched] - at),
    }
    assert scores == pytest.approx({name: 100 * float(value) for name, value in expected.items()}, abs=1e-3)


@pytest.mark.parametrize("mode", ["joint", "heads", "finetune"])
def test_a_network_of_the_users_own(tmp_path, capsys, mode):
    factory = "networks_for_tests:sequential"
    network = ["--model.name", "factory", "--model.factory", factory, "--model.taps", "['0', '1']"]
    settings = ["--seeds", 1, "--optimizer.epochs", 1, "--arms", "[]", "--model.mode", mode]
    results = here(tmp_path / "run", *network, *settings)
    assert len(results.metrics["boosted"]["accuracy"]) == 3
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 2  # a manifest alone runs no code
    assert "--factory" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--factory", factory]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["accuracy"] == pytest.approx(results.metrics["boosted"]["accuracy"], abs=1e-3)


# --- A stranger's photos ---


@pytest.fixture(scope="module")
def photo_run(photos, tmp_path_factory):
    """A network trained on 200 photos, of which one is broken, by the settings that the docs name."""
    folder = tmp_path_factory.mktemp("photos") / "run"
    data = ["--data.name", "folder", "--data.root", photos, "--data.image_size", 24]
    network = ["--model.name", "torchvision/resnet18", "--model.taps", "[layer1, layer2]"]
    settings = ["--seeds", 1, "--optimizer.epochs", 1, "--optimizer.batch_size", 16, "--arms", "[]"]
    arguments = [*data, *network, *settings]
    assert main(["run", "boosted-exits", "--out", str(folder), *ONE_PROCESS, *map(str, arguments)]) == 2
    assert not folder.exists()  # the broken photo is named before any work
    here(folder, *arguments, "--data.unreadable", "leave-out", "--optimizer.schedule", "constant")
    return folder


def ask(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_photos_are_predicted_as_they_are_evaluated(photo_run, photos, tmp_path, capsys):
    """Sizes, modes and orientations of all kinds: one reader and one preprocessing for all ways to the network."""
    results = load_results(photo_run / "results.json")
    assert any("1 of the 200 images" in note and BROKEN in note for note in results.notes)
    assert results.cost.flops > 1e7
    manifest = json.loads((photo_run / "model.json").read_text())
    assert manifest["extra"]["preprocessing"]["resize"] == "crop"

    code, out, _ = ask(capsys, "evaluate", photo_run)  # on its own data, by its own settings
    assert code == 0
    evaluated = json.loads(out)
    (tmp_path / "elsewhere").symlink_to(photos)
    other = ["evaluate", photo_run, "--data", "folder", "--root", tmp_path / "elsewhere"]
    code, _, err = ask(capsys, *other)
    assert code == 2 and "--unreadable leave-out" in err
    code, out, _ = ask(capsys, *other, "--unreadable", "leave-out")
    assert json.loads(out)["accuracy"] == evaluated["accuracy"]

    splits = tenfold.data.load_splits("folder", root=str(photos), unreadable="leave-out")
    code, out, _ = ask(capsys, "predict", photo_run, *splits.test.paths)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    right = np.mean([line["class"] == label for line, label in zip(lines, splits.test.labels, strict=True)])
    assert 100 * right == pytest.approx(evaluated["served"]["accuracy"], abs=1e-3)
    shares = [np.mean([line["exit"] == n + 1 for line in lines]) for n in range(3)]
    assert shares == pytest.approx(evaluated["served"]["exit_shares"], abs=1e-6)
    assert {line["label"] for line in lines} <= set(splits.classes)

    served = tenfold.load(photo_run)
    image = served.preprocessing.normalize(served.preprocessing.read(splits.test.paths[0])[None])
    assert int(served(image).argmax()) == lines[0]["class"]


def test_other_classes_and_broken_photos_are_one_line(photo_run, photos, tmp_path, capsys):
    code, _, err = ask(capsys, "predict", photo_run, photos / BROKEN)
    assert (code, BROKEN in err) == (2, True)
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.jpg").write_bytes((photos / "even" / "photo0.jpg").read_bytes())
    code, _, err = ask(capsys, "evaluate", photo_run, "--data", "folder", "--root", tmp_path)
    assert code == 2 and "even, left, top" in err and "cats, dogs" in err


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("builder", "timm/hf-hub:someone/model", "nothing is fetched"),
        ("arguments.arguments", {"pretrained": True}, "pretrained"),
        ("arguments.image_shape", [3, 0, 24], "image_shape"),
        ("arguments.more", 1, "more"),
        ("extra.preprocessing", {"size": [24, 24]}, "preprocessing"),
        ("extra.costs", [3, 2, 1], "costs"),
        ("extra.classes", ["a"], "classes"),
    ],
)
def test_a_hostile_manifest_is_one_line(photo_run, tmp_path, photos, capsys, place, value, message):
    manifest = json.loads((photo_run / "model.json").read_text())
    *path, last = place.split(".")
    part = manifest
    for name in path:
        part = part[name]
    part[last] = value
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    (tmp_path / "model.safetensors").hardlink_to(photo_run / "model.safetensors")
    code, _, err = ask(capsys, "predict", tmp_path, photos / "even" / "photo0.jpg")
    assert code == 2 and message in err and err.count("\n") == 1
