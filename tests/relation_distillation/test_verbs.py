"""The system's own verbs on the command line."""

import json
from dataclasses import replace

import pytest
import torch

from tenfold.cli import main
from tenfold.systems.relation_distillation import settings
from tenfold.systems.relation_distillation.model import vision_transformer

SYSTEM = "relation-distillation"


def test_a_sweep_prints_its_table_beside_the_papers(tmp_path, monkeypatch, capsys):
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
