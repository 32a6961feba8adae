"""ONNX: the branching graph and the staged files give PyTorch's exits and logits, and really stop."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.data import Preprocessing, digits
from tenfold.errors import UserError
from tenfold.models.onnx import onnx_metadata, onnx_session
from tenfold.systems.boosted_exits.method import confidence
from tenfold.systems.boosted_exits.networks.msdnet import MSDNet
from tenfold.systems.boosted_exits.networks.small_cnn import small_cnn
from tenfold.systems.boosted_exits.serving.onnx_graphs import export_branching, export_staged
from tenfold.systems.boosted_exits.serving.onnx_stages import OnnxStages
from tenfold.systems.boosted_exits.serving.runner import simulate

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module", params=["tensor state", "list state"])
def case(request, tmp_path_factory):
    torch.manual_seed(0)
    if request.param == "tensor state":
        model, shape = small_cnn(num_classes=5, widths=(4, 6, 8)), (1, 12, 12)
    else:
        settings = {"num_blocks": 3, "base": 1, "step": 1, "channels": 8, "growth_rate": 4}
        model = MSDNet(5, growth_factors=(1, 2), bottleneck_factors=(1, 2), **settings)
        shape = (3, 16, 16)
    model.eval()
    inputs = torch.randn(17, *shape) * 3
    thresholds, staying = [], torch.arange(len(inputs))
    with torch.no_grad():
        for z in model.ensemble(model(inputs))[:-1]:  # half of those who are left leave at every exit
            sure = confidence(z)[staying]
            lower, upper = sure.sort().values[len(sure) // 2 - 1 : len(sure) // 2 + 1]
            thresholds.append((lower + upper).item() / 2)
            staying = staying[sure < thresholds[-1]]
    thresholds.append(-1e8)
    folder = tmp_path_factory.mktemp("onnx")
    branching = export_branching(
        model, inputs[:1], thresholds, folder / "model.onnx", metadata={"note": "carried along"}
    )
    staged = export_staged(model, inputs[:2], thresholds, folder / "stages", costs=[1, 2, 3])
    assert max(branching.max_difference, staged.max_difference) < 1e-4
    return model, inputs, thresholds, folder


def ask(session, image, thresholds):
    logits, number = session.run(None, {"input": image[None].numpy(), "thresholds": np.array(thresholds, np.float32)})
    return logits[0], int(number[0])


def test_branching_graph_gives_the_answers_of_pytorch(case):
    model, inputs, thresholds, folder = case
    expected = simulate(model, inputs, thresholds)
    assert set(expected.exits.tolist()) == {0, 1, 2}
    session = onnx_session(folder / "model.onnx")
    for row, image in enumerate(inputs):
        logits, number = ask(session, image, thresholds)
        assert number == expected.exits[row]
        np.testing.assert_allclose(logits, expected.logits[row], atol=1e-5)


def test_thresholds_may_be_left_out_and_metadata_come_along(case):
    model, inputs, thresholds, folder = case
    expected = simulate(model, inputs, thresholds)
    session = onnx_session(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["input"]
    exits = [int(session.run(["exit"], {"input": image[None].numpy()})[0][0]) for image in inputs]
    assert exits == expected.exits.tolist()
    assert onnx_metadata(folder / "model.onnx")["note"] == "carried along"


def test_thresholds_are_tuned_without_a_new_export(case):
    _, inputs, _, folder = case
    session = onnx_session(folder / "model.onnx")
    assert ask(session, inputs[0], [-1e8, -1e8, -1e8])[1] == 0
    assert ask(session, inputs[0], [1e8, 0.0, -1e8])[1] == 1
    assert ask(session, inputs[0], [1e8, 1e8, -1e8])[1] == 2


def convolutions(graph, depth=0):
    """Depth of nesting in branches of every convolution."""
    for node in graph.node:
        if node.op_type == "Conv":
            yield depth
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from convolutions(attribute.g, depth + 1)


def test_later_stages_are_inside_the_branch_that_goes_on(case):
    model, _, _, folder = case
    depths = list(convolutions(onnx.load(folder / "model.onnx").graph))
    assert set(depths) == set(range(model.exits))


def test_staged_files_give_the_answers_of_pytorch(case):
    model, inputs, thresholds, folder = case
    expected = simulate(model, inputs, thresholds)
    outputs = OnnxStages(folder / "stages")(inputs.numpy())
    assert outputs.exits.tolist() == expected.exits.tolist()
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)
    assert list(outputs.stage_sizes) == [int((expected.exits >= n).sum()) for n in range(model.exits)]
    manifest = json.loads((folder / "stages" / "stages.json").read_text())
    assert manifest["costs"] == [1, 2, 3]


def test_a_changed_stage_is_refused(case, tmp_path):
    import shutil

    shutil.copytree(case[3] / "stages", tmp_path / "stages")
    with (tmp_path / "stages" / "stage2.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"stage2\.onnx"):
        OnnxStages(tmp_path / "stages")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": [0.5]}, "one threshold"),
        ({"thresholds": ["x"]}, "thresholds"),
        ({"reweight": [float("nan")] * 3}, "numbers"),
        ({"stages": []}, "stages"),
        ({"stages": [{"file": "../stage1.onnx"}]}, "file"),
        ({"format": "other"}, "format"),
    ],
)
def test_a_damaged_or_hostile_manifest_is_one_line(case, tmp_path, change, message):
    manifest = json.loads((case[3] / "stages" / "stages.json").read_text()) | change
    (tmp_path / "stages.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message) as error:
        OnnxStages(tmp_path)
    assert "\n" not in str(error.value)


def test_an_export_does_not_overwrite_something_else(case, tmp_path):
    model, inputs, thresholds, _ = case
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="no earlier export"):
        export_staged(model, inputs[:2], thresholds, tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def serving_code():
    page = Path(__file__).parents[2] / "docs/own-model.md"
    (code,) = re.findall(r'```python title="serve.py"\n(.*?)```', page.read_text(encoding="utf-8"), re.DOTALL)
    return code


def test_the_lines_of_the_guide_serve_an_exported_run_as_the_command_line_does(
    finished_run, tmp_path, monkeypatch, capsys
):
    """Onnxruntime alone, ``tenfold predict model.onnx`` and ``tenfold predict RUN`` say the same."""
    run = finished_run("boosted-exits").absolute()
    monkeypatch.chdir(tmp_path)
    pixels = digits().images[3, 0].numpy()
    Image.fromarray(pixels).resize((40, 24)).save("photo.jpg", quality=95)
    assert main(["export", str(run), "--to", "onnx", "--out", "exported"]) == 0
    shutil.copy("exported/model.onnx", "model.onnx")
    capsys.readouterr()
    said = []
    for given in (str(run), "model.onnx"):
        assert main(["predict", given, "photo.jpg"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["exit"] == said[1]["exit"] and said[0]["label"] == said[1]["label"]
    assert abs(said[0]["confidence"] - said[1]["confidence"]) < 1e-4
    exec(compile(serving_code(), "serve.py", "exec"), {})
    assert capsys.readouterr().out.split() == [said[0]["label"], "after", "exit", str(said[0]["exit"])]


def test_the_lines_of_the_guide_cut_out_what_training_cuts_out(tmp_path, monkeypatch):
    torch.manual_seed(0)
    how = Preprocessing.cropped(24, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    model = small_cnn(num_classes=2, widths=(4, 6), image_channels=3).eval()
    monkeypatch.chdir(tmp_path)
    told = {"preprocessing": json.dumps(how.to_dict()), "classes": json.dumps(["a", "b"])}
    export_branching(model, torch.zeros(1, 3, 24, 24), [-1e8, -1e8], "model.onnx", metadata=told)
    ramp = np.linspace(0, 255, 90 * 60 * 3).reshape(60, 90, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save("photo.jpg", exif=exif, quality=95)
    names: dict = {}
    exec(compile(serving_code(), "serve.py", "exec"), names)
    ours = how.normalize(how.read("photo.jpg")[None]).numpy()
    assert np.abs(names["image"] - ours).max() < 0.05  # a level or two of rounding between two resizers
