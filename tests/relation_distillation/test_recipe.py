"""The experiment end to end: killed and resumed, in two processes, ablations, commands, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold import distill_relations, load_results
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.experiment.arms import ARMS, AXES, arms_of, sweep_config
from tenfold.systems.relation_distillation.experiment.settings import PRESETS, Config
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer
from tenfold.training import TrainerOptions

FAST = [
    *("--seeds", "1", "--teacher.width", "32", "--teacher.depth", "3", "--teacher.epochs", "1", "--distil.epochs", "2"),
    *("--finetune.epochs", "1", "--finetune.few_epochs", "2", "--student.width", "16", "--student.depth", "2"),
    *("--data.validation", "900", "--trainer.threads", "1"),
]


def command(folder, *arguments):
    return ["run", "relation-distillation", "--out", str(folder), "--quiet", *FAST, *arguments]


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    for values in results["metrics"].values():
        values.pop("pretraining_seconds")
    for table in results["tables"]:
        if "seconds" in table["columns"]:
            place = table["columns"].index("seconds")
            for row in table["rows"]:
                row[place] = None
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "whole"
    assert main(command(folder, "--arms", "[scratch]")) == 0
    return folder


def test_a_killed_run_resumes_to_the_same_numbers(whole, tmp_path):
    folder = tmp_path / "killed"
    options = ["--arms", "[scratch]", "--trainer.checkpoint_steps", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tenfold", *command(folder, *options)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not (folder / "steps/relations/seed0/pretraining/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    assert main(command(folder, *options, "--resume")) == 0
    assert numbers(folder) == numbers(whole)


_TWO = """
import torch
from tenfold import distill_relations
from tenfold.data import LabelledImages, TensorBatches
from tenfold.parallel import rank
from tenfold.systems.relation_distillation import vision_transformer
from tenfold.training import TrainerOptions
torch.manual_seed(0)
student = vision_transformer(image_size=8, patch=2, width=16, depth=2, heads=2, channels=1)
teacher = vision_transformer(image_size=8, patch=2, width=32, depth=3, heads=4, channels=1)
images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
data = LabelledImages(images, torch.zeros(64, dtype=torch.int64), ("one",))
batches = TensorBatches(data, 16, seed=1, mean=(0.5,), std=(0.3,))
trainer = TrainerOptions(accelerator="cpu", devices=DEVICES, loggers=[], threads=1)
found = []
for ratio in (0.0, 0.5):
    ended = distill_relations(student, teacher, batches, epochs=1, folder=f"FOLDER-{ratio}", mask_ratio=ratio,
                              inputs=lambda batch: batch[0], trainer=trainer)
    found += [ended.history[0]["train/loss"], *[float(v.double().sum()) for v in student.state_dict().values()]]
if rank() == 0:
    print(*found)
"""


def test_two_halves_of_a_batch_are_the_whole(tmp_path):
    """Losses and weights after training on two ranks are those of one, masks included."""
    one, two = (
        _TWO.replace("DEVICES", str(devices)).replace("FOLDER", str(tmp_path / f"fit{devices}")) for devices in (1, 2)
    )
    whole: dict = {}
    exec(compile(one, "one.py", "exec"), whole)
    (tmp_path / "two.py").write_text(two)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "two.py")], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert [float(value) for value in ran.stdout.split()] == pytest.approx(whole["found"], rel=1e-4, abs=1e-4)


def test_a_finished_run_and_what_can_be_done_with_it(whole, tmp_path, capsys):
    results = load_results(whole / "results.json")
    assert {claim.id for claim in results.claims} == {"scratch", "scratch-few"}
    assert results.metrics["relations"]["qk_share"] < 1
    manifest = json.loads((whole / "pretrained/model.json").read_text())
    assert manifest["arguments"]["heads"] == [2, 8] and manifest["extra"]["teacher_layer"] == 2
    assert "blocks.1.mlp" in manifest["extra"]["untrained"]
    assert main(["evaluate", str(whole)]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(results.metrics["relations"]["full"], abs=0.3)
    assert main(["evaluate", str(whole / "pretrained")]) == 0
    assert json.loads(capsys.readouterr().out)["knn"] == pytest.approx(results.metrics["relations"]["knn"], abs=0.3)
    picture = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    assert main(["predict", str(whole), str(picture)]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in "0123456789"
    assert main(["predict", str(whole / "pretrained"), str(picture)]) == 2
    assert main(["export", str(whole), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert main(["export", str(whole), "--to", "safetensors", "--out", str(tmp_path / "weights")]) == 0
    assert main(["evaluate", str(tmp_path / "weights"), "--data", "digits"]) == 0
    capsys.readouterr()
    assert main(["export", str(whole / "pretrained"), "--to", "transformers", "--out", str(tmp_path / "hf")]) == 2
    assert "one head count" in capsys.readouterr().err


def test_all_arms_of_the_ablations_run(tmp_path, capsys):
    """One step each would do; a run of all of them shows that none is only a name."""
    arms = [*ARMS, "block-1"]
    options = ["--arms", json.dumps(arms), "--finetune.few_labels", "0", "--data.limit", "100", "--distil.epochs", "1",
               "--distil.views", "1", "--distil.watch_knn", "true", "--finetune.longer", "2"]  # fmt: skip
    assert main(command(tmp_path / "run", *options)) == 0
    results = load_results(tmp_path / "run/results.json")
    assert set(results.metrics) == {*arms, "relations"}
    for axis in AXES:  # so that every axis of a sweep has run
        assert set(AXES[axis]) <= set(results.metrics)
    rows = (tmp_path / "run/steps/relations/seed0/pretraining/epochs.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1] and "validation/knn" in rows[0]
    lengths = next(table for table in results.tables if table.id == "lengths")
    assert lengths.columns == ["arm", "1", "2"] and [row[0] for row in lengths.rows] == ["scratch", "mae"]
    assert results.metrics["uniform-heads"]["head_reset"] > 0 == results.metrics["relations"]["head_reset"]
    assert results.metrics["uniform-heads"]["knn"] == results.metrics["relations"]["knn"]
    assert len({claim.id for claim in results.claims}) == len(results.claims) > 10


def test_every_axis_of_the_sweep_has_its_arms():
    for axis in ("layer", *AXES):
        assert len(arms_of(sweep_config(PRESETS["tiny"], axis))) > 1
    with pytest.raises(UserError, match="axis"):
        sweep_config(PRESETS["tiny"], "colour")
    for preset in PRESETS.values():
        arms_of(preset)


def test_distilling_networks_of_ones_own(tmp_path):
    torch.manual_seed(0)
    student = vision_transformer(image_size=16, patch=4, width=16, depth=2, heads=2)
    teacher = vision_transformer(image_size=16, patch=4, width=32, depth=3, heads=4)
    images = torch.utils.data.TensorDataset(torch.randn(32, 3, 16, 16), torch.zeros(32))
    batches = torch.utils.data.DataLoader(images, batch_size=8)
    found = distill_relations(
        student, teacher, batches, epochs=20, folder=tmp_path, inputs=lambda batch: batch[0], learning_rate=5e-3,
        trainer=TrainerOptions(loggers=[]),
    )  # fmt: skip
    assert found.history[-1]["train/loss"] < 0.6 * found.history[0]["train/loss"]
    assert found.heads == ["adaptive"] and "norm" in found.untrained
    with pytest.raises(UserError, match="no batches"):
        distill_relations(student, teacher, [], epochs=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--distil.teacher_layer", "9"], "layers 1 to 3"),
        (["--distil.heads", "5"], "do not divide"),
        (["--arms", "[colour]"], "there is no arm 'colour'"),
        (["--student.width", "18", "--distil.heads", "adaptive"], "multiple"),
        (["--teacher.weights", "missing.pth"], "missing.pth"),
        (["--teacher.patch", "3"], "patch"),
        (["--data.name", "folder", "--data.root", "ROOT"], "class"),
        (["--distil.epochs", "0"], "at least 1"),
        (["--data.unlabelled", "nowhere"], "nowhere"),
    ],
)
def test_wrong_settings_end_with_one_line(tmp_path, capsys, arguments, said):
    (tmp_path / "photos" / "train" / "only").mkdir(parents=True)
    (tmp_path / "photos" / "test" / "only").mkdir(parents=True)
    arguments = [str(tmp_path / "photos") if argument == "ROOT" else argument for argument in arguments]
    out = tmp_path / "run"
    assert main(["run", "relation-distillation", "--out", str(out), "--quiet", *FAST, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (out / "results.json").exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, capsys):
    other = vision_transformer(image_size=8, patch=2, width=64, depth=3, heads=8, channels=1)
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    arguments = ["--teacher.weights", str(tmp_path / "other.pth")]
    assert main(["run", "relation-distillation", "--out", str(tmp_path / "run"), "--quiet", *FAST, *arguments]) == 2
    assert "has shape" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_with_given_weights_and_unlabelled_images(tmp_path):
    teacher = vision_transformer(image_size=8, patch=2, width=32, depth=3, heads=8, channels=1)
    torch.save({"model": teacher.state_dict()}, tmp_path / "mae.pth")
    arguments = ["--arms", "[]", "--teacher.weights", str(tmp_path / "mae.pth"), "--data.limit", "100",
                 "--finetune.few_labels", "0"]  # fmt: skip
    assert main(["run", "relation-distillation", "--out", str(tmp_path / "run"), "--quiet", *FAST, *arguments]) == 0
    results = load_results(tmp_path / "run/results.json")
    assert any("mae.pth" in note for note in results.notes)
    assert isinstance(PRESETS["paper"], Config)
