"""The experiment end to end: killed and resumed, in two processes, ablations, commands, bad input."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from systems_for_tests import CASES

import tenfold
from tenfold import distill_relations, load_results
from tenfold.attention.heads import heads_per_block
from tenfold.cli import main
from tenfold.data import LabelledImages, TensorBatches
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.experiment.arms import ARMS, AXES, arms_of, sweep_config
from tenfold.systems.relation_distillation.experiment.pretraining import make_student, make_task, make_teacher
from tenfold.systems.relation_distillation.experiment.recipe import read_images
from tenfold.systems.relation_distillation.experiment.settings import PRESETS
from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer
from tenfold.training.options import TrainerOptions

FAST = CASES["relation-distillation"].fast[:-4]  # but its arms and steps between checkpoints


def command(folder, *arguments):
    return ["run", "relation-distillation", "--out", str(folder), "--quiet", "--workers", "1", *FAST, *arguments]


def distilled(folder, devices):
    """Loss and weights after an epoch on one process, or on the ranks that the environment names."""
    torch.manual_seed(0)
    student = vision_transformer(image_size=8, patch=2, width=16, depth=2, heads=2, channels=1)
    teacher = vision_transformer(image_size=8, patch=2, width=32, depth=3, heads=4, channels=1)
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    data = LabelledImages(images, torch.zeros(64, dtype=torch.int64), ("one",))
    batches = TensorBatches(data, 16, seed=1, mean=(0.5,), std=(0.3,))
    trainer = TrainerOptions(accelerator="cpu", devices=devices, loggers=[])
    found = []
    for ratio in (0.0, 0.5):
        ended = distill_relations(student, teacher, batches, epochs=1, folder=f"{folder}-{ratio}", mask_ratio=ratio,
                                  inputs=lambda batch: batch[0], trainer=trainer)  # fmt: skip
        # Biases of keys get no gradient from attention maps: Adam makes steps of their rounding errors.
        weights = [v for name, v in student.state_dict().items() if not name.endswith("qkv.bias")]
        found += [ended.history[0]["train/loss"], *[float(v.double().sum()) for v in weights]]
    return found


def _on_rank(rank, folder, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    torch.set_num_threads(1)
    found = distilled(f"{folder}/two", 2)
    if rank == 0:
        Path(f"{folder}/found.json").write_text(json.dumps(found))


def test_two_halves_of_a_batch_are_the_whole(tmp_path):
    """Losses and weights after training on two ranks are those of one, masks included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_on_rank, (str(tmp_path), port), nprocs=2, start_method="fork")
    two = json.loads((tmp_path / "found.json").read_text())
    assert two == pytest.approx(distilled(tmp_path / "one", 1), rel=1e-4, abs=1e-4)


def test_a_finished_run_and_what_can_be_done_with_it(finished_run, tmp_path, capsys):
    whole = finished_run("relation-distillation")
    results = load_results(whole / "results.json")
    assert {claim.id for claim in results.claims} == {"scratch", "scratch-few"}
    assert all(claim.interval for claim in results.claims)  # with one seed, over its test images
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
    assert main(["predict", str(whole / "pretrained"), str(picture)]) == 2
    assert main(["export", str(whole), "--to", "safetensors", "--out", str(tmp_path / "weights")]) == 0
    assert main(["evaluate", str(tmp_path / "weights"), "--data", "digits"]) == 0
    capsys.readouterr()
    assert main(["export", str(whole / "pretrained"), "--to", "transformers", "--out", str(tmp_path / "hf")]) == 2
    assert "one head count" in capsys.readouterr().err
    served = tenfold.load(whole)
    assert served(torch.zeros(1, 1, 8, 8)).shape == (1, 10) and served.preprocessing.size == (8, 8)


def test_every_arm_has_a_loss_that_reaches_the_student():
    config = replace(PRESETS["tiny"], distil=replace(PRESETS["tiny"].distil, views=None))
    splits = read_images(config)
    ours, clean = splits.example(2).normal_(), splits.example(2).normal_()
    for name, arm in {**ARMS, "block-1": arms_of(replace(config, arms=["block-1"]))["block-1"]}.items():
        torch.manual_seed(0)
        student = make_student(config, splits)
        task = make_task(config, splits, arm, make_teacher(config, splits, None), student)
        if task is None:
            assert name == "scratch"
            continue
        loss = task(ours if arm.target == "mae" else (ours, clean))["loss"]
        loss.backward()
        assert torch.isfinite(loss) and student.blocks[0].attn.qkv.weight.grad.abs().sum() > 0, name


def test_arms_in_one_run(tmp_path):
    """What the loop over arms does beside their losses: chains, shared pre-trainings, longer fine-tunings."""
    arms = ["scratch", "mae", "chain", "uniform-heads", "block-1"]
    options = ["--arms", json.dumps(arms), "--finetune.few_labels", "0", "--data.limit", "60", "--distil.epochs", "1",
               "--distil.views", "1", "--distil.watch_knn", "true", "--finetune.longer", "2",
               "--distil.chain", "[16]"]  # fmt: skip
    assert main(command(tmp_path / "run", *options)) == 0
    results = load_results(tmp_path / "run/results.json")
    assert set(results.metrics) == {*arms, "relations"}
    rows = (tmp_path / "run/steps/relations/seed0/pretraining/epochs.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1] and "validation/knn" in rows[0]
    lengths = next(table for table in results.tables if table.id == "lengths")
    assert lengths.columns == ["arm", "1", "2"] and [row[0] for row in lengths.rows] == ["scratch", "mae"]
    assert results.metrics["uniform-heads"]["head_reset"] > 0 == results.metrics["relations"]["head_reset"]
    assert results.metrics["uniform-heads"]["knn"] == results.metrics["relations"]["knn"]
    assert any("the first 60 are used" in note for note in results.notes)


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
        student, teacher, batches, epochs=12, folder=tmp_path, inputs=lambda batch: batch[0], learning_rate=5e-3,
        trainer=TrainerOptions(loggers=[]),
    )  # fmt: skip
    assert found.history[-1]["train/loss"] < 0.6 * found.history[0]["train/loss"]
    assert found.heads == ["adaptive"] and "norm" in found.untrained
    assert student.training and all(p.requires_grad for p in [*student.parameters(), *teacher.parameters()])
    assert heads_per_block(student) == [2, 2]  # as it would be loaded again
    with pytest.raises(UserError, match="no batches"):
        distill_relations(student, teacher, [], epochs=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--distil.heads", "5"], "do not divide"),
        (["--teacher.patch", "3"], "patch"),
        (["--data.name", "folder", "--data.root", "ROOT"], "class"),
        (["--student.name", "timm/vit_tiny_patch16_224", "--student.arguments", "{pretrained: true}"], "is not taken"),
    ],
)
def test_what_does_not_fit_ends_with_one_line_before_any_work(tmp_path, capsys, arguments, said):
    (tmp_path / "photos" / "train" / "only").mkdir(parents=True)
    (tmp_path / "photos" / "test" / "only").mkdir(parents=True)
    arguments = [str(tmp_path / "photos") if argument == "ROOT" else argument for argument in arguments]
    assert main(command(tmp_path / "run", *arguments)) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, capsys):
    other = vision_transformer(image_size=8, patch=2, width=64, depth=3, heads=8, channels=1)
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    arguments = ["--teacher.weights", str(tmp_path / "other.pth")]
    assert main(command(tmp_path / "run", *arguments)) == 2
    assert "has shape" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_with_given_weights_and_unlabelled_images(tmp_path):
    teacher = vision_transformer(image_size=8, patch=2, width=32, depth=3, heads=8, channels=1)
    torch.save({"model": teacher.state_dict()}, tmp_path / "mae.pth")
    arguments = ["--arms", "[]", "--teacher.weights", str(tmp_path / "mae.pth"), "--data.limit", "100",
                 "--finetune.few_labels", "0"]  # fmt: skip
    assert main(command(tmp_path / "run", *arguments)) == 0
    results = load_results(tmp_path / "run/results.json")
    assert any("mae.pth" in note for note in results.notes)
