"""The system's own verbs on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.export import save_model
from tenfold.systems.relation_distillation.experiment import settings
from tenfold.systems.relation_distillation.experiment.arms import AXES
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer

SYSTEM = "relation-distillation"


def test_sweeps_print_their_tables_beside_the_papers(tmp_path, monkeypatch, capsys):
    tiny = settings.PRESETS["tiny"]
    fast = replace(
        tiny,
        data=replace(tiny.data, limit=60, validation=900),
        teacher=replace(tiny.teacher, width=16, depth=2, epochs=1),
        student=replace(tiny.student, width=16, depth=2),
        distil=replace(tiny.distil, epochs=1),
        finetune=replace(tiny.finetune, epochs=1, few_labels=0),
    )
    monkeypatch.setitem(settings.PRESETS, "tiny", fast)
    assert main([SYSTEM, "sweep", "layer", "--out", str(tmp_path / "sweep"), "--quiet", "true"]) == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| block-1", "| block-2", "| relations"]
    assert (tmp_path / "sweep/sweep.md").read_text().strip() in table
    for axis in ("heads", "chain"):
        assert main([SYSTEM, "sweep", axis, "--out", str(tmp_path / axis), "--quiet", "true"]) == 0
        rows = [line.split(" | ")[0].removeprefix("| ") for line in capsys.readouterr().out.splitlines()[2:]]
        assert rows == [*AXES[axis], "relations"]
    assert main([SYSTEM, "sweep", "colour"]) == 2


def test_converting_there_and_back(tmp_path, capsys):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = vision_transformer(image_size=32, patch=8, width=768, depth=1, heads=12).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "mae.pth")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours.safetensors"
    assert main([SYSTEM, "convert", str(tmp_path / "mae.pth"), "--to", "transformers", "--out", str(theirs)]) == 0
    assert main([SYSTEM, "convert", str(theirs), "--to", "timm", "--out", str(ours)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["heads"] == 12
    from safetensors.torch import load_file

    back = load_file(ours)
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())
    assert main([SYSTEM, "convert", str(tmp_path / "nothing"), "--to", "timm"]) == 2


def test_the_forms_are_timed_side_by_side(capsys):
    assert main([SYSTEM, "bench", "--tokens", "33", "--batch", "1", "--heads", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["form", "direct", "chunked", "identity"]


def test_segmentation_wants_a_pre_trained_network_and_the_right_folder(tmp_path, capsys):
    assert main([SYSTEM, "segment", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no model" in capsys.readouterr().err


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A teacher of 16 x 16 colour images, images without labels, and labelled ones."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, level in (("dark", 40), ("bright", 200)):
            (root / "labelled" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(level, 10, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "labelled" / split / label / f"{number}.png")
    torch.manual_seed(0)
    teacher = vision_transformer(image_size=16, patch=4, width=32, depth=3, heads=4)
    arguments = {"image_size": 16, "channels": 3, "patch": 4, "width": 32, "depth": 3, "heads": 4}
    save_model(root / "teacher", teacher, system=SYSTEM, builder="vit", arguments=arguments,
               extra={"mean": [0.5] * 3, "std": [0.5] * 3})  # fmt: skip
    return root


IMAGES = ["--image_size", "16", "--patch", "4", "--batch_size", "8", "--epochs", "2", "--quiet", "true"]


def test_sequential_distillation_and_fine_tuning_on_ones_own_images(photographs, tmp_path, capsys):
    """Each stage runs with the heads it was trained with: the teacher's in its last block."""
    unlabelled, out = str(photographs / "labelled/train"), tmp_path / "chain"
    students = "[24x2x2, 16x2x2]"
    command = [SYSTEM, "chain", unlabelled, str(photographs / "teacher"), students, "--out", str(out), *IMAGES]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [stage["heads"] for stage in answer["stages"]] == [[2, 4], [2, 4]]
    last = Path(answer["model"])
    assert json.loads((last / "model.json").read_text())["extra"]["teacher"] == str(out / "1-24x2x2")
    rows = [json.loads(line) for line in (last / "training/epochs.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "qk", "vv", "lr", "images_per_second", "peak_memory_mb", "validation/qk_overlap"} <= set(rows[0])
    assert main(command) == 0  # all stages are there already
    assert main([*command, "--epochs", "3"]) == 2
    assert "another epochs" in capsys.readouterr().err
    tuned = tmp_path / "tuned"
    command = [SYSTEM, "finetune", str(last), str(photographs / "labelled"), "--validation", "4", "--out", str(tuned)]
    options = ["--epochs", "4", "--batch_size", "10", "--learning_rate", "0.003", "--quiet", "true"]
    capsys.readouterr()
    assert main([*command, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["head_reset"] == 0 and answer["test"]["top1"] == 100
    assert main(["predict", str(tuned), str(photographs / "labelled/test/dark/0.png")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "dark"
    assert main([*command, *options]) == 2  # it is finished
    assert "already holds" in capsys.readouterr().err
    assert main([SYSTEM, "finetune", str(tuned), str(photographs / "labelled"), "--out", str(tmp_path / "x")]) == 2


def test_a_stopped_distillation_goes_on_with_the_same_settings_only(photographs, tmp_path, capsys):
    command = [SYSTEM, "distil", str(photographs / "labelled/train"), str(photographs / "teacher"), "16x2x2"]
    out = tmp_path / "student"
    assert main([*command, "--out", str(out), *IMAGES]) == 0
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.json").unlink()  # as if it was stopped before the end
    assert main([*command, "--out", str(out), *IMAGES, "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    assert main([*command, "--out", str(out), *IMAGES]) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    assert len((out / "training/epochs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("teacher", "student", "more", "said"),
    [
        ("nothing.pth", "tiny", [], "there is no teacher"),
        ("timm/vit_tiny_patch16_224", "tiny", [], "--teacher_weights"),
        ("TEACHER", "minute", [], "there is no student"),
        ("TEACHER", "16x2x2", ["--teacher_layer", "4"], "layers 1 to 3"),
        ("TEACHER", "16x2x2", ["--image_size", "32"], "do not fit"),
        ("TEACHER", "16x2x2", ["--views", "2"], "in memory"),
    ],
)
def test_distillations_that_cannot_be(photographs, tmp_path, capsys, teacher, student, more, said):
    teacher = str(photographs / "teacher") if teacher == "TEACHER" else teacher
    command = [SYSTEM, "distil", str(photographs / "labelled"), teacher, student, "--out", str(tmp_path / "out")]
    assert main([*command, *IMAGES, *more]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_ends_with_one_line_and_leaves_nothing(photographs, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    whole = (photographs / "labelled/train/dark/0.png").read_bytes()
    for number in range(9):
        (tmp_path / f"images/{number}.png").write_bytes(whole if number else whole[:100])
    command = [SYSTEM, "distil", str(tmp_path / "images"), str(photographs / "teacher"), "16x2x2"]
    assert main([*command, "--out", str(tmp_path / "out"), *IMAGES, "--batch_size", "9"]) == 2
    error = capsys.readouterr().err
    assert "0.png" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
