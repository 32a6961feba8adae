"""Whole runs, their verbs, and wrong input, as a user meets them on the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tenfold import load_results
from tenfold.cli import main

SHARED = Path(__file__).parents[1] / "shared"
FAST = ["--seeds", "1", "--optimizer.epochs", "2", "--estimator.passes", "20", "--estimator.test_passes", "20",
        "--model.arguments", "{widths: [16, 8]}"]  # fmt: skip


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    """Wrong input: exit code 2 and one line; gives the line."""
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    return err


def start(folder, *more):
    command = [sys.executable, "-m", "tenfold", "run", "activation-uncertainty", "--out", str(folder), "--quiet",
               *FAST, *more]  # fmt: skip
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncertainty") / "whole"
    process = start(folder)
    assert process.wait() == 0, process.stderr.read()
    return folder


def test_a_run_has_every_compulsory_row_and_computes_its_claims(whole):
    results = load_results(whole / "results.json")
    rows = {name.removeprefix("digits: ") for name in results.metrics}
    assert {
        "all layers", "chosen layers", "all layers, on/off", "logits", "sorted probabilities",
        "prediction only (largest probability)", "moment propagation, calibrated",
        "closed form of the last layer, calibrated", *(f"Monte-Carlo dropout, T = {t}" for t in (2, 5, 10, 20, 50)),
    } <= rows  # fmt: skip
    claims = {claim.id: claim for claim in results.claims}
    assert claims["same-predictions"].holds
    assert {"equivalent-digits", "subset-digits", "strength-digits", "prediction-digits"} <= set(claims)
    ours = results.metrics["digits: all layers"]["r2"]
    best = results.metrics["digits: Monte-Carlo dropout, T = 50"]["r2"]
    assert (claims["equivalent-digits"].value == 50) == (ours >= best)
    assert {"estimator.json", "estimator.safetensors", "model.json", "model.safetensors", "report.html"} <= {
        path.name for path in whole.iterdir()
    }


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers(whole, tmp_path):
    process = start(tmp_path / "killed")
    while not (tmp_path / "killed/steps/main/digits/seed0/result.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(tmp_path / "killed", "--resume")
    assert process.wait() == 0, process.stderr.read()
    assert numbers(tmp_path / "killed") == numbers(whole)


@pytest.mark.slow
def test_two_processes_measure_all_rows(whole, tmp_path):
    """The main model is trained by both; estimators are fitted and measured on all rows in each."""
    process = start(tmp_path / "two", "--trainer.devices", "2")
    assert process.wait() == 0, process.stderr.read()
    steps = [folder / "steps/main/digits/seed0/result.json" for folder in (whole, tmp_path / "two")]
    one, two = (json.loads(path.read_text())["history"] for path in steps)
    assert len(one) == len(two)
    tables = [load_results(folder / "results.json").tables for folder in (whole, tmp_path / "two")]
    caption = next(table for table in tables[1] if table.id == "rows-digits")
    assert len(caption.rows) == len(next(table for table in tables[0] if table.id == "rows-digits").rows)
    retained = load_results(tmp_path / "two/results.json").plots
    curve = next(plot for plot in retained if plot.id == "retention-digits")
    assert "Of the 39 most uncertain" in curve.caption  # a tenth of all 397 test rows, not of a rank's share


@pytest.mark.slow
def test_joint_training_ensembles_and_ablations(tmp_path, capsys):
    arguments = ["--joint", "true", "--ensemble", "2", "--ablations", "true", "--companions", "[]", "--quiet"]
    code, _, err = call(capsys, "run", "activation-uncertainty", "--out", tmp_path / "run", *FAST, *arguments)
    assert code == 0, err
    results = load_results(tmp_path / "run/results.json")
    claims = {claim.id: claim for claim in results.claims}
    assert claims["joint-unchanged"].holds
    assert {"joint-start", "ensemble", "ensemble-sources", "ensemble-mean"} <= set(claims)
    assert {"ablation-rates", "ablation-places", "ablation-label_passes", "ablation-rows", "ablation-shift",
            "ablation-training_rows"} <= {table.id for table in results.tables}  # fmt: skip


def test_verbs_on_a_run(whole, tmp_path, capsys):
    code, out, err = call(capsys, "evaluate", whole, "--passes", "20")
    assert code == 0, err
    assert json.loads(out)["rows"] == 397
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8))
    code, out, err = call(capsys, "predict", whole, image)
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [set(line) for line in lines] == [{"input", "class", "label", "probability", "uncertainty", "far"}] * 3
    code, out, err = call(capsys, "export", whole, "--out", tmp_path / "onnx")
    assert code == 0, err
    assert (tmp_path / "onnx/model.onnx").exists()
    code, _, err = call(capsys, "export", whole, "--to", "safetensors", "--out", tmp_path / "copy")
    assert code == 0, err
    code, again, _ = call(capsys, "predict", tmp_path / "copy", image)
    assert [json.loads(line) for line in again.splitlines()] == lines
    code, out, err = call(capsys, "activation-uncertainty", "score", whole, image, "--out", tmp_path / "scores.csv")
    assert code == 0, err
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    assert scores[0] == '"id","prediction","probability","uncertainty","far"'
    assert len(scores) == 4


def test_a_model_and_data_of_the_users_own(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    model, rows = "networks_for_tests:tabular", "networks_for_tests:tabular_rows"
    verb = ("activation-uncertainty",)
    labels, estimator = tmp_path / "labels", tmp_path / "estimator"
    code, out, err = call(capsys, *verb, "label", model, rows, "--passes", "20", "--out", labels)
    assert code == 0, err
    assert json.loads(out)["dropout"] == ["2"]
    code, out, err = call(capsys, *verb, "fit", model, rows, labels, "--out", estimator)
    assert code == 0, err
    assert json.loads(out)["validation_r2"] > 0.3
    table = tmp_path / "rows.csv"
    values = np.random.default_rng(0).normal(size=(7, 5))
    table.write_text("key,a,b,c,d,e\n" + "\n".join(f"{n + 10}," + ",".join(map(str, v)) for n, v in enumerate(values)))
    scored = (*verb, "score", model, table, "--estimator", estimator, "--id_column", "key")
    code, _, err = call(capsys, *scored, "--out", tmp_path / "scores.csv")
    assert code == 0, err
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].startswith("10,")
    code, _, err = call(capsys, *scored, "--out", tmp_path / "scores.parquet")
    assert code == 0, err
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "scores.parquet").num_rows == 7

    bad = {
        "name of no column": ("a,b\n1,2\n", ["--columns", "[a, b, c, d, e]"], "no column 'c'"),
        "NaN": ("a,b,c,d,e\n1,2,3,4,5\n1,nan,3,4,5\n", [], "NaN or infinite in row 1"),
        "missing": ("a,b,c,d,e\n1,2,3,4,\n", [], "missing, NaN or infinite in row 0"),
        "text": ("a,b,c,d,e\n1,2,3,4,x\n", [], "does not hold numbers"),
        "cut short": ("a,b,c,d,e\n1,2\n", [], "cannot read"),
        "empty": ("", [], "cannot read"),
        "no rows": ("a,b,c,d,e\n", [], "holds no rows"),
    }
    for name, (content, more, message) in bad.items():
        (tmp_path / "bad.csv").write_text(content)
        line = refused(capsys, *verb, "score", model, tmp_path / "bad.csv", "--estimator", estimator, "--out",
                       tmp_path / "bad-scores.csv", *more)  # fmt: skip
        assert message in line, name
        assert not (tmp_path / "bad-scores.csv").exists(), name
    other = "networks_for_tests:tabular_without_dropout"
    assert "another model" in refused(capsys, *verb, "score", other, table, "--estimator", estimator)
    assert "has no dropout" in refused(capsys, *verb, "label", other, rows, "--out", tmp_path / "none")
    added = (*verb, "label", other, rows, "--add", "['1']", "--rate", "0.1", "--passes", "5")
    assert call(capsys, *added, "--out", tmp_path / "added")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dropout.rate", "0"], "must be above 0 and below 1"),
        (["--dropout.rate", "1.5"], "must be above 0 and below 1"),
        (["--estimator.taps", "[nowhere]"], "no module 'nowhere'"),
        (["--dropout.places", "[nowhere]"], "no dropout at 'nowhere'"),
        (["--estimator.passes", "1"], "at least 2"),
        (["--estimator.target", "regression"], "one number per input"),
        (["--estimator.target", "spread"], "target must be one of"),
        (["--data.auxiliary", "5000"], "leaves none"),
        (["--data.name", "movielens-1m", "--data.root", "."], "holds no MovieLens 1m"),
        (["--data.name", "criteo", "--data.root", "."], "holds no Criteo log"),
        (["--companions", "[nothing]"], "no task 'nothing'"),
        (["--model.name", "ratings"], "does not fit"),
        (["--model.name", "factory", "--model.factory", "networks_for_tests:sequential"], "no dropout"),
    ],
)
def test_wrong_settings_get_one_line_and_leave_nothing(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(str(SHARED))
    if arguments[:2] == ["--model.name", "factory"]:
        arguments = [*arguments, "--model.arguments", "{}"]
    line = refused(capsys, "run", "activation-uncertainty", "--quiet", "--out", tmp_path / "run", *arguments)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_predictions_of_neighbours_become_scores(tmp_path, capsys):
    random = np.random.default_rng(0)
    passes = random.dirichlet([1, 1, 1], size=(10, 4))
    np.save(tmp_path / "mc.npy", passes.reshape(40, 3))
    arguments = ("import", "activation-uncertainty", tmp_path / "mc.npy", "--out", tmp_path / "scores.csv")
    code, _, err = call(capsys, *arguments, "--passes", "10")
    assert code == 0, err
    rows = [line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    best = passes.mean(0).argmax(1)
    expected = passes.std(0, ddof=1)[range(4), best]
    assert [float(row[2]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert "not 7 passes" in refused(capsys, *arguments, "--passes", "7")
