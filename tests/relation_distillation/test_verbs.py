"""The system's own verbs on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.models.folder import save_model
from tenfold.systems.relation_distillation.data.images import load_images
from tenfold.systems.relation_distillation.experiment import settings
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer

SYSTEM = "relation-distillation"


def test_a_sweep_prints_its_table_beside_the_papers(tmp_path, monkeypatch, capsys):
    tiny = settings.PRESETS["tiny"]
    fast = replace(
        tiny,
        data=replace(tiny.data, limit=60, validation=900),
        teacher=replace(tiny.teacher, width=16, depth=1, epochs=1),
        student=replace(tiny.student, width=16, depth=1),
        distil=replace(tiny.distil, epochs=1),
        finetune=replace(tiny.finetune, epochs=1, few_labels=0),
    )
    monkeypatch.setitem(settings.PRESETS, "tiny", fast)
    assert main([SYSTEM, "sweep", "layer", "--out", str(tmp_path / "sweep"), "--quiet", "true"]) == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| block-1", "| relations"]
    assert (tmp_path / "sweep/sweep.md").read_text().strip() in table
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
    assert [line.split()[0] for line in lines] == ["form", "direct", "chunked"]


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


IMAGES = ["--image_size", "16", "--patch", "4", "--batch_size", "8", "--epochs", "2",
          "--quiet", "true"]  # fmt: skip


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
    rows = [json.loads(line) for line in (last / "steps/distillation/epochs.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "qk", "vv", "lr", "images_per_second", "peak_memory_mb", "validation/qk_overlap"} <= set(rows[0])
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume", "true"]) == 0  # all stages are there already
    assert json.loads(capsys.readouterr().out) == answer
    assert main([*command, "--resume", "true", "--epochs", "3"]) == 2
    assert "another training.epochs" in capsys.readouterr().err
    tuned = tmp_path / "tuned"
    command = [SYSTEM, "finetune", str(last), str(photographs / "labelled"), "--out", str(tuned), "--quiet", "true"]
    options = ["--epochs", "4", "--batch_size", "10", "--learning_rate", "0.003"]
    assert main([*command, *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["head_reset"] == 0 and answer["test"]["top1"] == 100
    assert main(["predict", str(tuned), str(photographs / "labelled/test/dark/0.png")]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "dark"
    assert main(["evaluate", str(tuned)]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == 100
    page = tmp_path / "both.html"
    assert main(["report", str(last), str(tuned), "--out", str(page)]) == 0  # every training leaves results
    assert "finetune" in page.read_text()
    assert main([*command, *options]) == 2  # it is finished
    assert "already holds" in capsys.readouterr().err
    assert main([SYSTEM, "finetune", str(tuned), str(photographs / "labelled"), "--out", str(tmp_path / "x")]) == 2


def test_a_stopped_distillation_goes_on_with_the_same_settings_only(photographs, tmp_path, capsys):
    command = [SYSTEM, "distil", str(photographs / "labelled/train"), str(photographs / "teacher"), "16x2x2"]
    command += ["--views", "2"]  # crops of files, kept in memory
    out = tmp_path / "student"
    assert main([*command, "--out", str(out), *IMAGES]) == 0
    weights = (out / "model.safetensors").read_bytes()
    for name in ("model.json", "results.json", "steps/distillation/result.json"):
        (out / name).unlink()  # as if it was stopped before the end
    assert main([*command, "--out", str(out), *IMAGES, "--resume", "true", "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    assert main([*command, "--out", str(out), *IMAGES, "--resume", "true"]) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    (out / "results.json").unlink()
    (out / "steps/distillation/weights.safetensors").write_bytes(b"cut short")
    capsys.readouterr()
    assert main([*command, "--out", str(out), *IMAGES, "--resume", "true"]) == 2
    assert "weights.safetensors is damaged" in capsys.readouterr().err
    assert len((out / "steps/distillation/epochs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("teacher", "student", "more", "said"),
    [
        ("nothing.pth", "tiny", [], "there is no teacher"),
        ("timm/vit_tiny_patch16_224", "tiny", [], "--teacher_weights"),
        ("TEACHER", "minute", [], "there is no student"),
        ("TEACHER", "16x2x2", ["--teacher_layer", "4"], "layers 1 to 3"),
        ("TEACHER", "16x2x2", ["--image_size", "32"], "16 x 16 pixels alone"),
        ("TEACHER", "16x2x2", ["--batch_size", "0"], "batch_size must be greater than 0"),
        ("TEACHER", "16x2x2", ["--crop_scale", "-1"], "crop_scale"),
        ("TEACHER", "16x2x2", ["--views", "2000", "--cache_mb", "1"], "take fewer views"),
        ("FILE", "16x2x2", [], "--teacher_heads"),
        ("TEACHER", "timm/no_such_vit", [], "timm has no network"),
        ("TEACHER", "timm/vit_tiny_patch16_224", ["--student_arguments", "{checkpoint_path: x.pth}"], "is not taken"),
        ("TEACHER", "timm/local-dir:/tmp", [], "timm has no network"),
    ],
)
def test_distillations_that_cannot_be(photographs, tmp_path, capsys, teacher, student, more, said):
    places = {"TEACHER": photographs / "teacher", "FILE": photographs / "teacher/model.safetensors"}
    teacher = str(places.get(teacher, teacher))
    command = [SYSTEM, "distil", str(photographs / "labelled"), teacher, student, "--out", str(tmp_path / "out")]
    assert main([*command, *IMAGES, *more]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_of_timm_teaches_by_its_heads_or_by_its_name(photographs, tmp_path, capsys):
    """A raw file says nothing of its heads; arguments of timm/NAME are taken, sizes and switches alone."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    data, out = str(photographs / "labelled/train"), ["--out", str(tmp_path / "out"), *IMAGES, "--epochs", "1"]
    named = ["timm/vit_tiny_patch16_224", "16x1x2", "--teacher_weights", str(tmp_path / "own.pth"),
             "--teacher_arguments", "{patch_size: 4, embed_dim: 32, depth: 2, num_heads: 4}"]  # fmt: skip
    assert main([SYSTEM, "distil", data, *named, *out]) == 0
    by_name = json.loads(capsys.readouterr().out)
    own = [str(tmp_path / "own.pth"), "16x1x2", "--teacher_heads", "[4]", "--out", str(tmp_path / "own")]
    assert main([SYSTEM, "distil", data, *own, *IMAGES, "--epochs", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["heads"] == by_name["heads"] == [4]


def test_a_manifest_names_sizes_and_nothing_that_acts(photographs, tmp_path, capsys):
    """Whatever else stands in somebody's model.json is refused before anything is built."""
    whole = json.loads((photographs / "teacher/model.json").read_text())
    weights = (photographs / "teacher/model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    for change, said in (
        ({"builder": "timm/vit_tiny_patch16_224", "arguments": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path"),
        ({"builder": "timm/hf-hub:somebody/vit"}, "timm has no network"),
        ({"builder": "timm/vit_tiny_patch16_224", "arguments": whole["arguments"]
          | {"arguments": {"pretrained": True}}}, "pretrained"),
        ({"builder": "os.system"}, "there is no network"),
        ({"arguments": whole["arguments"] | {"depth": 10**9}}, "depth"),
        ({"arguments": whole["arguments"] | {"heads": "all"}}, "heads"),
        ({"arguments": {}}, "lacks"),
        ({"system": "boosted-exits"}, "describes no network"),
    ):  # fmt: skip
        (tmp_path / "model.json").write_text(json.dumps(whole | change))
        command = [SYSTEM, "distil", str(photographs / "labelled"), str(tmp_path), "16x2x2"]
        assert main([*command, "--out", str(tmp_path / "out"), *IMAGES]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


def test_photos_of_all_kinds_with_a_broken_one(photos, photographs, tmp_path, capsys):
    """Distil and fine-tune on a stranger's folder; what is served reads as what was measured."""
    command = [SYSTEM, "distil", str(photos), str(photographs / "teacher"), "16x2x2", *IMAGES]
    command += ["--batch_size", "64", "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "student")]) == 2
    error = capsys.readouterr().err
    assert "photo197.jpg" in error and "--unreadable leave-out" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "student").exists()
    command += ["--unreadable", "leave-out"]
    assert main([*command, "--out", str(tmp_path / "student")]) == 0
    assert any("1 of the 200" in note for note in json.loads((tmp_path / "student/results.json").read_text())["notes"])
    command = [SYSTEM, "finetune", str(tmp_path / "student"), str(photos), "--out", str(tmp_path / "tuned")]
    command += ["--quiet", "true", "--epochs", "1", "--batch_size", "40"]
    capsys.readouterr()
    assert main(command) == 2
    assert "--unreadable leave-out" in capsys.readouterr().err
    assert main([*command, "--unreadable", "leave-out"]) == 0
    tuned = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(tmp_path / "tuned")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["top1"] == pytest.approx(tuned["test"]["top1"])
    splits = load_images("folder", root=str(photos), image_size=16, unreadable="leave-out")
    files = [str(path) for path in splits.test.paths]
    assert main(["predict", str(tmp_path / "tuned"), *files]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right = [row["class"] == label for row, label in zip(rows, splits.test.labels, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(again["top1"])


def test_nothing_that_is_there_is_replaced(photographs, tmp_path, capsys):
    (tmp_path / "model.json").write_text("of somebody else")
    arguments = ["--to", "safetensors", "--out", str(tmp_path)]
    assert main(["export", str(photographs / "teacher"), *arguments]) == 2
    assert "already holds model.json" in capsys.readouterr().err
    assert (tmp_path / "model.json").read_text() == "of somebody else"
