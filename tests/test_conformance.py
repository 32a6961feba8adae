"""What every system must do, as one table: run, resume after a kill, evaluate, predict, export, load, refuse."""

import contextlib
import json
import resource
import time

import pytest
from systems_for_tests import CASES, numbers
from warm import TENFOLD, warm_process

import tenfold
from tenfold import load_results
from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import main
from tenfold.errors import UserError

each_system = pytest.mark.parametrize("system", [system.id for system in SYSTEMS])


def call(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """Wrong input: exit code 2 and one line; gives the line."""
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.startswith("tenfold: "), err
    return err


def test_every_system_has_a_case():
    assert set(CASES) == {system.id for system in SYSTEMS}
    for system in SYSTEMS:
        assert find_system(system.alias) is system


@each_system
def test_a_run_leaves_what_is_promised(finished_run, system):
    folder = finished_run(system)
    assert {"config.yaml", "results.json", "report.html", "log.txt", "steps", "model.json"} <= {
        path.name for path in folder.iterdir()
    }
    results = load_results(folder / "results.json")
    assert results.system == system and results.claims and results.summary.endswith(".") and results.plots
    unsure = [claim.id for claim in results.claims if claim.chance and claim.verdict != "not settled"]
    assert all(claim.interval for claim in results.claims if claim.id in unsure)


@each_system
def test_a_run_that_was_killed_resumes_in_workers_to_the_numbers_of_one_process(finished_run, system, tmp_path):
    whole, folder = finished_run(system), tmp_path / "killed"
    arguments = ["run", system, "--out", str(folder), "--quiet", *CASES[system].fast]
    program = warm_process("lightning").start(TENFOLD, ["tenfold", *arguments, "--workers", "1"])
    while not (folder / CASES[system].kill_at).exists():
        assert program.poll() is None, program.err()
        time.sleep(0.002)
    program.kill()
    program.wait()
    assert not (folder / "results.json").exists()
    assert main([*arguments, "--workers", "2", "--resume"]) == 0
    assert numbers(folder) == numbers(whole)


@each_system
def test_a_finished_run_is_evaluated_loaded_exported_and_asked(finished_run, system, tmp_path, capsys):
    folder = finished_run(system)
    code, out, err = call(capsys, "evaluate", folder)
    assert code == 0 and json.loads(out), err
    assert callable(tenfold.load(folder))
    inputs = CASES[system].inputs(tmp_path)
    code, out, err = call(capsys, "predict", folder, *inputs)
    assert code == 0 and out.strip(), err
    for kind in ("safetensors", "onnx"):
        code, out, err = call(capsys, "export", "--to", kind, folder, "--out", tmp_path / kind)
        assert code == 0 and any((tmp_path / kind).iterdir()), err


@each_system
def test_a_finished_run_is_not_done_again_and_not_overwritten(finished_run, system, capsys):
    folder = finished_run(system)
    before = (folder / "results.json").stat().st_mtime_ns
    fast = ["--workers", "1", *CASES[system].fast]
    assert "already holds a run" in refused(capsys, "run", system, "--out", folder, *fast)
    assert "another seed" in refused(capsys, "run", system, "--out", folder, "--resume", *fast, "--seed", 1)
    assert call(capsys, "run", system, "--out", folder, "--resume", *fast)[0] == 0
    assert (folder / "results.json").stat().st_mtime_ns == before


@each_system
def test_wrong_settings_are_refused_before_any_work(system, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    wrong = {
        "--seed=-1": "seed",
        f"--seed={2**64}": "seed",
        "--trainer.devices=0": "devices",
        "--trainer.accelerator=gpu": "accelerator",
        "--workers=0": "workers",
        "--nope=1": "nope",
        "--preset=huge": "huge",
        "--data.root=nowhere": "nowhere",
        **CASES[system].wrong,
    }
    for setting, word in wrong.items():
        assert word in refused(capsys, "run", system, setting), setting
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@each_system
@pytest.mark.parametrize("damage", ["model.json", "model.safetensors"])
def test_a_damaged_model_is_named(finished_run, system, damage, tmp_path, capsys):
    folder = finished_run(system)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = (folder / damage).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x00" * 64):
        (tmp_path / damage).unlink()
        (tmp_path / damage).write_bytes(damaged)
        assert damage in refused(capsys, "evaluate", tmp_path)


def with_one_number_changed(value, to):
    """Copies of plain values, in each of which one whole number is another."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: changed} for changed in with_one_number_changed(part, to))
    elif isinstance(value, list):
        for place, part in enumerate(value[:3]):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in with_one_number_changed(part, to))
    elif type(value) is int:
        yield to


@each_system
def test_no_number_of_a_manifest_takes_memory_without_bound(finished_run, system, tmp_path):
    """Whatever number a stranger writes into ``model.json``, the model loads as before or is refused in one line."""
    folder = finished_run(system)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.json").unlink()
    manifest = json.loads((folder / "model.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = 0
    for large, huge in zip(*(with_one_number_changed(manifest["arguments"], n) for n in (200_000, 2**40)), strict=True):
        (tmp_path / "model.json").write_text(json.dumps({**manifest, "arguments": (large, huge)[tried % 2]}))
        with contextlib.suppress(UserError):
            tenfold.load(tmp_path)
        tried += 1
    assert tried
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20  # KiB


@each_system
def test_everything_explains_itself(system, capsys):
    known = find_system(system)
    assert call(capsys, "run", system, "--help")[0] == 0
    for verb in known.commands.VERBS:
        assert call(capsys, system, verb, "--help")[0] == 0
    assert "no verb" in refused(capsys, system, "frobnicate")


LIGHT = """
import sys, contextlib, io
from tenfold.cli import main
heavy = {"lightning", "torchmetrics", "sympy", "transformers", "torch._dynamo", "torch._inductor"}
folder, out, loads, *inputs = sys.argv[1:]
heavy -= set(loads.split(","))
export = ["export", "--to", "safetensors", folder, "--out", out]
for command in (["predict", folder, *inputs], ["evaluate", folder], export):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(command) == 0, command
    assert not heavy & set(sys.modules), (command[0], heavy & set(sys.modules))
"""


@each_system
def test_serving_does_not_load_what_trains(finished_run, system, tmp_path):
    folder = finished_run(system)
    inputs = CASES[system].inputs(tmp_path)
    arguments = ["light", folder, tmp_path / "out", ",".join(CASES[system].loads), *inputs]
    program = warm_process("torch").start(LIGHT, arguments)
    assert program.wait() == 0, program.err()
