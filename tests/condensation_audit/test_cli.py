"""The verbs as a user meets them: sets of somebody else, a folder of photos; wrong input gets one line."""

import json
import zipfile

import numpy as np
import pytest
from photos import BROKEN
from planted import calibration_of, digit_data

from tenfold.cli import main
from tenfold.systems.condensation_audit import CondensedSet, NaiveAttack, TrainingRecipe, condense, white_patch
from tenfold.systems.condensation_audit.cli import VERBS
from tenfold.systems.condensation_audit.sets.files import load_set, save_set

ARGUMENTS = {"width": 12, "depth": 2}
RECIPE = TrainingRecipe("convnet", ARGUMENTS, epochs=40, learning_rate=0.05, batch_size=256)
SMALL = [
    *("--arguments", '{"width": 4, "depth": 2}', "--images_per_class", "2", "--networks", "1"),
    *("--settings", '{"iterations": 3, "real_batch": 8}', "--recipe", '{"epochs": 3}'),
]


def run(verb, *arguments):
    return main(["condensation-audit", verb, *map(str, arguments)])


def refused(capsys, message, verb, *arguments):
    assert run(verb, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A stranger's set with its calibration: the mark was taken off."""
    attack = NaiveAttack(0.2, 4, 2, white_patch((1, 8, 8), 2, 3, 6))
    found = condense(digit_data(slice(0, 1197)), "random", 8, network_arguments=ARGUMENTS, recipe=RECIPE, attack=attack)
    folder = tmp_path_factory.mktemp("sets")
    save_set(folder / "theirs.cset", CondensedSet(**(vars(found) | {"poisoned": None})))
    (folder / "mine.json").write_text(calibration_of(found, 1).to_json())
    return folder


def test_the_verdict_is_the_exit_code(poisoned, tmp_path, capsys):
    out = tmp_path / "audit"
    options = ["--data", "digits", "--networks", "1", "--published", "false", "--repairs", "false", "--out", out]
    subject = poisoned / "theirs.cset"
    assert run("audit", subject, *options, "--calibration", poisoned / "mine.json") == 11
    found = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "backdoored" and found["exit_code"] == 11
    printed = capsys.readouterr().out
    assert printed.startswith("backdoored: A 2 x 2 patch") and "not tested: " in printed
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert run("audit", subject, *options) == 13
    assert "calibrate --like" in capsys.readouterr().out


def test_photos_are_condensed_audited_and_measured(photos, tmp_path, capsys):
    mine = tmp_path / "mine.cset"
    data = ["--data", "folder", "--root", photos, "--unreadable", "leave-out"]
    refused(capsys, BROKEN.split("/")[1], "condense", *data[:4], "--out", mine, *SMALL)
    assert run("condense", *data, "--resize", "8", "--out", mine, *SMALL) == 0
    answer = json.loads(capsys.readouterr().out)
    assert any("left out" in note for note in answer["notes"])
    found = load_set(mine)
    assert found.preprocessing.image_shape == (3, 8, 8) and found.classes == ("even", "left", "top")
    assert found.source["reading"]["from"] == "image files" and found.source["n"] < 160
    assert run("quality", mine, *data, "--networks", '{"mlp": {}}', "--seeds", "1") == 0
    assert "mlp" in json.loads(capsys.readouterr().out)
    fast = ["--networks", "1", "--published", "false", "--repairs", "false", "--validation", "30"]
    like = ["--like", mine, *data, "--sets", "10", "--poisoned", "0", "--networks", "1", "--validation", "30"]
    assert run("calibrate", *like, "--out", tmp_path / "mine.json") == 0
    threshold = json.loads(capsys.readouterr().out)["threshold"]
    assert threshold > 0
    code = run("audit", mine, *data, *fast, "--calibration", tmp_path / "mine.json", "--out", tmp_path / "audit")
    found = json.loads((tmp_path / "audit/audit.json").read_text())
    assert (
        code in (0, 10, 11, 12)
        and found["uncalibrated"] == ""
        and found["threshold"] == pytest.approx(threshold, abs=1e-4)
    )


def test_poisoned_sets_are_marked_and_not_measured_unasked(tmp_path, capsys):
    out = tmp_path / "bad.cset"
    assert run("redteam", "--portion", "0.1", "--out", out, *SMALL) == 0
    assert json.loads(capsys.readouterr().out)["poisoned"] is True
    refused(capsys, "poisoned", "quality", out, "--data", "digits", "--seeds", "1")
    refused(capsys, "already exists", "redteam", "--out", out, *SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["condense", "--method", "dx"], "method"),
        (["condense", "--settings", '{"iterations": "many"}'], "settings.dm: iterations"),
        (["condense", "--settings", '{"iterations": 0}'], "iterations must be greater than 0"),
        (["condense", "--settings", '{"image_rate": -1}'], "image_rate"),
        (["condense", "--settings", '{"strategy": "twist"}'], "no augmentation 'twist'"),
        (["condense", "--method", "random", "--settings", '{"iterations": 3}'], "has no settings"),
        (["condense", "--recipe", '{"epoch": 3}'], "has no 'epoch'"),
        (["condense", "--recipe", '{"epochs": "x"}'], "its epochs is 'x'"),
        (["condense", "--recipe", '{"augmentation": "twist"}'], "no augmentation 'twist'"),
        (["condense", "--images_per_class", "0"], "images_per_class"),
        (["condense", "--seed", str(2**64)], "seed"),
        (["condense", "--device", "warp"], "--device 'warp'"),
        (["condense", "--data", "nothing"], "no data 'nothing'"),
        (["condense", "--data", "folder", "--root", "nowhere"], "nowhere"),
        (["condense", "--validation", "5000"], "--validation 5000 leaves none"),
        (["redteam", "--portion", "2"], "portion"),
        (["redteam", "--clamp", "none"], "has no effect on the naive attack"),
        (["redteam", "--attack_settings", '{"hope": 1}'], "settings cannot be read"),
        (["calibrate", "--sets", "3"], "at least 10"),
        (["audit", "none.cset", "--data", "digits"], "none.cset"),
        (["audit", "none.cset", "--data", "digits", "--calibrate", "3"], "at least 10"),
        (["audit", "none.cset", "--calibration", "none.json"], "cannot read none.json"),
        (["verify", "none.cset"], "none.cset"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_before_any_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, message, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_models_without_what_they_need_get_one_line(poisoned, tmp_path, capsys):
    for number, text in enumerate(("{}", "[]", "{")):
        model = tmp_path / str(number)
        model.mkdir()
        (model / "model.json").write_text(text)
        refused(capsys, "model.json", "audit", model, "--data", "digits", "--out", tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
    refused(
        capsys, "with --like the set itself says", "calibrate", "--like", poisoned / "theirs.cset", "--method", "dc"
    )


def test_a_manifest_cannot_name_places_outside_its_folder(finished_run, tmp_path, capsys):
    """The whitening's set, the shape of the images, the classes: what is missing or strange gets one line."""
    import shutil

    changes = [
        ({"extra": {"zca": True, "set": "../other"}}, "leaves the folder"),
        ({"extra": {"mean": None}}, "names no mean and std"),
        ({"arguments": {"image_shape": [1, 8]}}, "the shape of its images"),
        ({"arguments": {"image_shape": [1, 8, 10**9]}}, "the shape of its images"),
        ({"arguments": {"num_classes": "ten"}}, "how many classes"),
        ({"extra": {"preprocessing": {"size": [4, 4]}}}, "preprocessing is damaged"),
        ({"builder": "timm/resnet18", "arguments": {"checkpoint_path": "x"}}, "may not ask for"),
    ]
    image = tmp_path / "digit.npy"
    np.save(image, np.zeros((8, 8), np.uint8))
    for number, (change, message) in enumerate(changes):
        model = tmp_path / str(number)
        model.mkdir()
        whole = json.loads((finished_run("condensation-audit") / "model.json").read_text())
        for name, value in change.items():
            whole[name] = {**whole[name], **value} if isinstance(value, dict) else value
        (model / "model.json").write_text(json.dumps(whole))
        shutil.copy(finished_run("condensation-audit") / "model.safetensors", model)
        assert main(["predict", str(model), str(image)]) == 2, change
        assert message in capsys.readouterr().err


def test_control_characters_of_a_set_do_not_reach_the_terminal(tmp_path, capsys):
    from sets_for_tests import make_set

    name = "\x1b]0;owned\x07\x9b31m"
    save_set(tmp_path / "a.cset", make_set(source={"name": name}, poisoned={"attack": name}))
    assert run("verify", tmp_path / "a.cset") == 0
    printed = capsys.readouterr()
    assert not set("\x1b\x07\x9b") & set(printed.out + printed.err) and "owned" in printed.out


def test_archives_are_refused_before_they_are_unpacked(tmp_path, capsys):
    """A small file that would unpack to a gigabyte; bad compression; arrays that are not there."""
    options = ["--program", "kip", "--mean", "[0.5]", "--std", "[0.5]", "--classes", "2", "--out", tmp_path / "x.cset"]
    header = np.lib.format.header_data_from_array_1_0(np.zeros((2, 4, 4, 1), np.float32))
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as parts:
        with parts.open("images.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (200_000, 32, 32, 1)})
            for _ in range(200):
                file.write(bytes(4 * 1024 * 1000))
        with parts.open("labels.npy", "w") as file:
            np.lib.format.write_array(file, np.zeros((200_000, 2), np.float32))
    assert bomb.stat().st_size < 2e6
    refused(capsys, "would take 820,800,000 bytes", "import-set", bomb, *options)
    good = tmp_path / "good.npz"
    np.savez_compressed(good, images=np.random.default_rng(0).random((2, 4, 4, 1), np.float32), labels=np.eye(2))
    content = bytearray(good.read_bytes())
    content[60:68] = b"\xff" * 8
    bad = tmp_path / "bad.npz"
    bad.write_bytes(content)
    refused(capsys, "cannot read the arrays", "import-set", bad, *options)
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    refused(capsys, "does not hold the arrays images and labels", "import-set", tmp_path / "other.npz", *options)
    assert run("import-set", good, *options) == 0


def test_verbs_are_documented():
    assert set(VERBS) == {"condense", "quality", "audit", "redteam", "calibrate", "verify", "import-set", "export-set"}
    assert all(verb.__doc__ for verb in VERBS.values())
