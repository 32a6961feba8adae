"""The room's own verbs on a finished run, and the README's way from a folder of boxes to a network."""

import json
import re
import shlex
import shutil
from pathlib import Path

import optuna
import pytest
from PIL import Image
from systems_for_tests import CASES
from voc import photo, write_voc

from tenfold import load_results
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.models.onnx import onnx_metadata
from tenfold.systems.backbone_search.data.letterbox import letterbox
from tenfold.systems.backbone_search.evolution.archive import archive_lines, read_archive
from tenfold.systems.backbone_search.evolution.storage import open_storage
from tenfold.systems.backbone_search.evolution.worker import candidates_of
from tenfold.systems.backbone_search.objectives.int8 import quantize
from tenfold.systems.backbone_search.objectives.latency import command_latency

SYSTEM = "backbone-search"


@pytest.fixture(scope="module")
def run(finished_run):
    return finished_run(SYSTEM)


def call(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def refused(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_with_one_seed_differences_are_judged_over_test_images(run):
    claims = {claim.id: claim for claim in load_results(run / "results.json").claims}
    for id in ("found-mobiledet", "mapping"):
        low, high = claims[id].interval
        assert low <= claims[id].value <= high
    plots = {plot.id: plot for plot in load_results(run / "results.json").plots}
    assert all("s1.width=" in label for label in plots["front"].series[0].labels)


def test_a_worker_finds_what_the_run_found(run, tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/study.db"
    said = json.loads(call(capsys, SYSTEM, "worker", run, "--storage", url))
    own = read_archive((run / "archive.jsonl").read_text(), "x")
    study = optuna.load_study(study_name="nsga2-0", storage=open_storage(url))
    assert said["candidates"] == len(own) and archive_lines(candidates_of(study)) == archive_lines(own)
    assert "belongs to another task" in _with_other_seed_weights(run, tmp_path, url, capsys)
    assert "cannot reach the storage" in refused(
        capsys, SYSTEM, "worker", run, "--storage", "postgresql://nobody@127.0.0.1:1/none"
    )
    assert "no trained seed detector" in refused(capsys, SYSTEM, "worker", run, "--seed", "7", "--storage", url)
    assert "has not begun" in refused(capsys, SYSTEM, "worker", run, "--seed", "7")


def _with_other_seed_weights(run, tmp_path, url, capsys):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    (copy / "steps/seed/0").mkdir(parents=True)
    shutil.copy(run / "config.yaml", copy)
    weights = load_file(run / "steps/seed/0/weights.safetensors")
    weights["backbone.stem.conv.weight"].mul_(1.5)
    save_file(weights, copy / "steps/seed/0/weights.safetensors")
    return refused(capsys, SYSTEM, "worker", copy, "--storage", url)


def test_the_front_is_shown_and_promoted(run, capsys):
    lines = call(capsys, SYSTEM, "front", run).splitlines()
    assert "genome" in lines[0] and "s1.width=" in lines[1]
    slot = lines[1].split()[0]
    scores = json.loads(call(capsys, SYSTEM, "promote", run, "--slots", f"[{slot}]", "--repeats", "1", "--epochs", "1"))
    assert len(scores[slot]["long"]) == 1
    assert "no candidate 99" in refused(capsys, SYSTEM, "promote", run, "--slots", "[99]")
    assert "at least 1" in refused(capsys, SYSTEM, "promote", run, "--repeats", "0")


def test_a_command_tells_the_latency_of_a_device(run, capsys):
    said = json.loads(call(capsys, SYSTEM, "latency", run, "--command", "sh -c 'echo 3.5 # {onnx}'"))
    assert said["milliseconds"] == 3.5
    assert "must hold {onnx}" in refused(capsys, SYSTEM, "latency", run, "--command", "ls")
    for command, word in {
        "true {onnx}": "printed nothing",
        "echo {onnx}": "must be milliseconds",
        "no-such-program {onnx}": "cannot run",
        "false {onnx}": "ended with 1",
    }.items():
        with pytest.raises(UserError, match=word):
            command_latency(command)("model.onnx")


def test_from_a_folder_of_boxes_to_a_network_as_the_readme_says(tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[2] / "src/tenfold/systems/backbone_search/README.md"
    block = re.search(r"## From a folder.*?```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)[1]
    commands = [shlex.split(line, comments=True)[1:] for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 5
    fast = CASES[SYSTEM].fast
    small = [*fast[2:], "--space.seed", "small", "--space.neck", "[16, 16, 16]", "--space.head", "16", "--seeds", "1",
             "--data.height", "64", "--space.sizes", "[[32, 32], [64, 64]]"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "my-boxes")
    Image.fromarray(photo(3)).save("photo.jpg")
    for words in commands:
        call(capsys, *words, *([*small, "--quiet", "--workers", "1"] if words[0] == "run" else []))
    assert Image.open("drawn/photo.png").size == (60, 40)
    said = call(capsys, "predict", "runs/mine/export/model.onnx", "photo.jpg", "--confidence", "0")
    ours = call(capsys, "predict", "runs/mine", "photo.jpg", "--confidence", "0")
    scores = [[entry["score"] for entry in json.loads(text)["objects"]] for text in (said, ours)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3) and len(scores[0]) > 1
    exported = Path("runs/mine/export/model.onnx")
    facts = onnx_metadata(exported)
    assert json.loads(facts["classes"]) == ["cat", "dog"] and facts["size"] in ("32x32", "64x64")
    side = int(facts["size"][:2])
    images = letterbox(photo(3), side, side)[0][None].expand(4, -1, -1, -1)
    quantize(exported, Path("int8.onnx"), images, facts)
    said = json.loads(call(capsys, "predict", "int8.onnx", "photo.jpg", "--confidence", "0"))["objects"]
    assert [entry["score"] for entry in said[:3]] == pytest.approx(scores[1][:3], abs=0.05)
    # what is wrong with the data is said before anything is trained
    (tmp_path / "my-boxes/JPEGImages/i2.jpg").unlink()
    assert "i2" in refused(capsys, "run", SYSTEM, "--data.name", "voc", "--data.root", "my-boxes", "--out", "runs/no")
    assert not Path("runs/no/results.json").exists()
