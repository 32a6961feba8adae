"""Labelling jobs: killed and resumed, shared by processes, refused where they do not belong."""

import json
import multiprocessing
import time

import pytest
import torch
from uncertainty_job import batches, make_model

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty import ActivationUncertainty, Batch, label_to_folder, read_labels


def make_slowly(folder):
    label_to_folder(learner(), batches(), folder, block=2, progress=lambda done: time.sleep(0.05))


def learner(seed=0):
    return ActivationUncertainty(make_model(), next(batches())[0][:2], passes=10, seed=seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "whole"
    label_to_folder(learner(), batches(), folder, block=2)
    return read_labels(folder)


def same(found, expected):
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.spread, expected.spread)
    assert torch.equal(found.features, expected.features)


def test_a_killed_job_resumes_to_the_same_labels(whole, tmp_path):
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=make_slowly, args=(folder,))
    process.start()
    while len(list(folder.glob("block-*"))) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    with pytest.raises(UserError, match=r"not finished|missing"):
        read_labels(folder)
    label_to_folder(learner(), batches(), folder, block=2)
    same(read_labels(folder), whole)


def test_two_processes_make_the_labels_of_one(whole, tmp_path, monkeypatch):
    folder = tmp_path / "two"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        label_to_folder(learner(), batches(), folder, block=2)
        blocks = sorted(int(path.stem[-6:]) for path in folder.glob("block-*"))
        assert blocks == ([1, 3] if rank == "1" else [0, 1, 2, 3, 4])
    same(read_labels(folder), whole)


def test_a_lost_shard_is_named_and_made_again_by_any_number_of_processes(whole, tmp_path):
    folder = tmp_path / "lost"
    label_to_folder(learner(), batches(), folder, block=2)
    (folder / "block-000001.safetensors").unlink()
    with pytest.raises(UserError, match="1 of 5 blocks"):
        read_labels(folder)
    label_to_folder(learner(), batches(), folder, block=2)
    same(read_labels(folder), whole)
    damaged = folder / "block-000002.safetensors"
    content = damaged.read_bytes()
    for wrong in (b"cut short", content[:-3], content[:-3] + b"abc"):
        damaged.write_bytes(wrong)
        with pytest.raises(UserError, match="damaged"):
            read_labels(folder)
    label_to_folder(learner(), batches(), folder, block=2)
    same(read_labels(folder), whole)


def test_other_settings_and_other_folders_are_refused(tmp_path):
    folder = tmp_path / "labels"
    label_to_folder(learner(), batches(), folder, block=2)
    with pytest.raises(UserError, match="another seed"):
        label_to_folder(learner(seed=1), batches(), folder, block=2)
    with pytest.raises(UserError, match="another passes"):
        label_to_folder(learner(), batches(), folder, block=2, passes=5)
    changed = learner()
    with torch.no_grad():
        changed.model[0].weight += 1
    with pytest.raises(UserError, match="another model"):
        label_to_folder(changed, batches(), folder, block=2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        label_to_folder(learner(), batches(), other)
    with pytest.raises(UserError, match="is a file"):
        label_to_folder(learner(), batches(), other / "notes.txt")
    (folder / "labels.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(UserError, match="does not describe labels"):
        read_labels(folder)


def test_an_id_that_comes_twice_is_named(tmp_path):
    twice = [Batch(x, ids * 0 + 7) for x, ids in batches()]
    label_to_folder(learner(), twice, tmp_path / "labels")
    with pytest.raises(UserError, match="id 7 comes twice"):
        read_labels(tmp_path / "labels")
