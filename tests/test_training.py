"""``fit``: resume at any step, several processes, the best epoch, and a loss that is not finite."""

import errno
import math
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from warm import SCRIPT, on_two_processes, warm_process

from tenfold.cli.console import Terminated
from tenfold.errors import RunStopped, UserError
from tenfold.training import TrainerOptions, fit, learning_rate_factor

TRAINING = Path(__file__).parent / "shared" / "train_small.py"


def run_script(*arguments, check=True):
    """Train in a process of its own, which can be killed; gives the last line it prints."""
    done = warm_process("lightning").start(SCRIPT, [TRAINING, *arguments])
    code = done.wait()
    assert code == 0 or not check, done.err()
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_script(tmp_path_factory.mktemp("whole")).out()


@pytest.mark.parametrize("kill_at", [6, 9, 14])  # within an epoch, right after its end, within the next
def test_killed_training_resumes_to_the_same_numbers(tmp_path, whole, kill_at):
    killed = run_script(tmp_path / "killed", "--kill-at", kill_at, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run_script(tmp_path / "killed").out() == whole


def test_two_processes_agree_with_one(tmp_path):
    two = on_two_processes(SCRIPT, [TRAINING, tmp_path / "two", "--no-dropout", "--devices", 2])
    one = [float(number) for number in run_script(tmp_path / "one", "--no-dropout").out().split()]
    assert one == pytest.approx([float(number) for number in two.out().split()], rel=1e-4)


class Killed(Exception):
    """Stands for a kill: the training ends between two batches, and a new process begins with other random states."""


@pytest.mark.parametrize("kind", ["shuffling", "own generator", "list"])
@pytest.mark.parametrize("kill_at", [6, 8, 11])  # within an epoch of four batches, right after its end, within the next
def test_every_kind_of_loader_resumes_with_the_batches_that_are_left(tmp_path, kind, kill_at):
    rows = torch.arange(16.0)

    def order(folder, stop_at=None, seed=0):
        torch.manual_seed(seed)
        model = nn.Linear(1, 1)
        seen = []

        def watching(model, batch):
            if stop_at is not None and len(seen) == stop_at:
                raise Killed
            seen.append(batch.tolist())
            return model(batch[:, None]).square().mean() + torch.rand(()), {}

        generator = torch.Generator().manual_seed(5) if kind == "own generator" else None
        loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=kind != "list", generator=generator)
        batches = list(rows.split(4)) if kind == "list" else loader
        options = TrainerOptions(loggers=[], checkpoint_steps=1)
        with suppress(Killed):
            fit(model, watching, batches, epochs=3, optimizer=torch.optim.SGD(model.parameters(), 1e-6),
                folder=folder, options=options)  # fmt: skip
        return seen, torch.rand(1).item()

    whole, after = order(tmp_path / "whole")
    first, _ = order(tmp_path / "killed", stop_at=kill_at)
    rest, after_resumed = order(tmp_path / "killed", seed=99)
    assert [*first, *rest] == whole and after == after_resumed


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another"])
def test_a_damaged_checkpoint_is_named_with_the_way_on(tmp_path, damage):
    model, batches, optimizer = small_problem()
    options = TrainerOptions(loggers=[])
    fit(model, squared_error, batches, epochs=1, optimizer=optimizer, folder=tmp_path, options=options)
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 255
    last.write_bytes({"cut": content[:-100], "flipped": content, "empty": b"", "another": b"PK not a zip"}[damage])
    with pytest.raises(UserError, match=r"last\.ckpt.*remove the folder"):
        fit(model, squared_error, batches, epochs=2, optimizer=optimizer, folder=tmp_path, options=options)


def test_a_full_disk_stops_the_run_in_one_line_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    model, batches, optimizer = small_problem()
    options = TrainerOptions(loggers=[])
    fit(model, squared_error, batches, epochs=1, optimizer=optimizer, folder=tmp_path, options=options)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunStopped, match=r"No space left.*--resume"):
        fit(model, squared_error, batches, epochs=2, optimizer=optimizer, folder=tmp_path, options=options)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_ctrl_c_and_sigterm_are_interrupts_and_not_errors(kind, tmp_path):
    model, batches, optimizer = small_problem()

    def interrupted(model, batch):
        raise kind

    with pytest.raises(kind):
        fit(model, interrupted, batches, epochs=1, optimizer=optimizer, folder=tmp_path)


def small_problem():
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(4)]
    return model, batches, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(), {}


def test_non_finite_loss_stops_at_once_names_the_step_and_keeps_the_checkpoint(tmp_path):
    model, batches, optimizer = small_problem()
    calls = 0

    def breaks(model, batch):
        nonlocal calls
        calls += 1
        loss, logged = squared_error(model, batch)
        return loss * (math.nan if calls == 6 else 1), logged

    with pytest.raises(RunStopped, match="step 5") as stopped:
        fit(model, breaks, batches, epochs=3, optimizer=optimizer, folder=tmp_path, options=TrainerOptions(loggers=[]))
    assert calls == 6
    assert "\n" not in str(stopped.value)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_best_epoch_is_kept_and_history_tells_all_epochs(tmp_path):
    model, batches, optimizer = small_problem()
    scores = iter([0.1, 0.9, 0.3])
    seen = []

    def validate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": next(scores)}

    result = fit(model, squared_error, batches, epochs=3, optimizer=optimizer, folder=tmp_path, validate=validate,
                 select="score", options=TrainerOptions(loggers=["csv"]))  # fmt: skip
    assert result.best_epoch == 2
    assert [row["validation/score"] for row in result.history] == [0.1, 0.9, 0.3]
    assert all("train/loss" in row for row in result.history)
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[1][name])
    assert list(tmp_path.glob("metrics/version_*/metrics.csv"))


def test_gradient_is_clipped(tmp_path):
    model, batches, _ = small_problem()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.0)
    options = TrainerOptions(gradient_clip=1e-3, loggers=[])
    fit(model, squared_error, batches[:1], epochs=1, optimizer=optimizer, folder=tmp_path, options=options)
    assert 0 < (model.weight - before).norm() <= 1.001e-3


def test_float16_gradients_are_not_clipped_before_a_fused_optimizer_unscales_them(tmp_path):
    model, batches, _ = small_problem()
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    options = TrainerOptions(gradient_clip=1.0, precision="16-mixed", loggers=[])
    with pytest.raises(UserError, match="fused"):
        fit(model, squared_error, batches, epochs=1, optimizer=fused, folder=tmp_path, options=options)


def test_a_module_in_eval_mode_is_put_into_training_mode_and_frozen_parts_stay(tmp_path):
    _, batches, _ = small_problem()
    seen = []

    def looking(model, batch):
        seen.append([module.training for module in model])
        return squared_error(model, batch)

    for evaluated, expected in (("all", [True, True]), ("part", [False, True])):
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        (model if evaluated == "all" else model[0]).eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        fit(model, looking, batches, epochs=1, optimizer=optimizer, folder=tmp_path / evaluated,
            options=TrainerOptions(loggers=[]))  # fmt: skip
        assert seen[-1] == expected and not model.training


def test_learning_rate_factors():
    steps = learning_rate_factor("multistep", total_steps=40, steps_per_epoch=10, milestones=[2, 3])
    assert [steps(s) for s in (0, 19, 20, 29, 30)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = learning_rate_factor("cosine", total_steps=40, steps_per_epoch=10, warmup_epochs=1)
    assert [cosine(s) for s in (0, 9, 10, 25, 40)] == pytest.approx([0.1, 1, 1, 0.5, 0])
