"""Whole runs, their verbs, and wrong input, as a user meets them on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tenfold
from tenfold import load_results
from tenfold.cli import main
from tenfold.systems.activation_uncertainty import fit_estimator
from tenfold.systems.activation_uncertainty.experiment import ablations, recipe

SHARED = Path(__file__).parents[1] / "shared"
FAST = ["--seeds", "1", "--optimizer.epochs", "2", "--estimator.passes", "20", "--estimator.test_passes", "20",
        "--model.arguments", "{widths: [16, 8]}"]  # fmt: skip
VERB = ("activation-uncertainty",)


def call(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def done(capsys, *arguments):
    """What a command prints that succeeds."""
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    return out


def refused(capsys, *arguments):
    """Wrong input: exit code 2 and one line; gives the line."""
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all that it may measure, in one process; of each ablation a row or two."""
    folder = tmp_path_factory.mktemp("uncertainty") / "whole"
    more = ["--joint", "true", "--ensemble", "2", "--ablations", "true", "--data.auxiliary", "100", "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (ablations, "LABEL_PASSES", (2,)), (ablations, "ANGLES", (0, 90)), (ablations, "ROWS", (60,)),
            (ablations, "RATES", (0.3,)), (recipe, "RATES", (0.3,)),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        patch.setitem(fit_estimator.__kwdefaults__, "epochs", 40)
        assert main(["run", "activation-uncertainty", "--out", str(folder), "--quiet", *FAST, *more]) == 0
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
    assert claims["joint-unchanged"].holds
    assert {"equivalent-digits", "subset-digits", "strength-digits", "prediction-digits", "joint-start", "ensemble",
            "ensemble-sources", "ensemble-mean"} <= set(claims)  # fmt: skip
    for claim in results.claims:  # with one seed, intervals are over test rows
        assert claim.interval is not None or not claim.chance, claim.id
        if claim.interval is not None:
            assert claim.interval[0] <= claim.value <= claim.interval[1], claim.id
    assert results.summary.startswith("On digits, one pass with an estimator")
    ours = results.metrics["digits: all layers"]["r2"]
    best = results.metrics["digits: Monte-Carlo dropout, T = 50"]["r2"]
    assert (claims["equivalent-digits"].value == 50) == (ours >= best)
    assert {"ablation-rates", "ablation-places", "ablation-label_passes", "ablation-rows", "ablation-shift",
            "ablation-training_rows"} <= {table.id for table in results.tables}  # fmt: skip
    assert {"estimator.json", "estimator.safetensors", "model.json", "model.safetensors", "report.html"} <= {
        path.name for path in whole.iterdir()
    }
    assert any("100 validate" in note for note in results.notes)


@pytest.mark.slow
def test_two_processes_measure_all_rows(tmp_path):
    """The main model is trained by both; estimators are fitted and measured on all rows in each."""
    command = [sys.executable, "-m", "tenfold", "run", "activation-uncertainty", "--out", str(tmp_path / "two"),
               "--quiet", *FAST, "--trainer.devices", "2"]  # fmt: skip
    process = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 0, process.stderr
    plots = load_results(tmp_path / "two/results.json").plots
    curve = next(plot for plot in plots if plot.id == "retention-digits")
    assert "Of the 39 most uncertain" in curve.caption  # a tenth of all 397 test rows, not of a rank's share


def test_verbs_on_a_run(whole, tmp_path, capsys):
    assert json.loads(done(capsys, "evaluate", whole, "--passes", "20"))["rows"] == 397
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8))
    lines = [json.loads(line) for line in done(capsys, "predict", whole, image).splitlines()]
    assert [set(line) for line in lines] == [{"input", "class", "label", "probability", "uncertainty", "far"}] * 3
    done(capsys, "export", whole, "--to", "safetensors", "--out", tmp_path / "copy")
    again = done(capsys, "predict", tmp_path / "copy", image)
    assert [json.loads(line) for line in again.splitlines()] == lines
    done(capsys, *VERB, "score", whole, image, "--out", tmp_path / "scores.csv")
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    assert scores[0] == '"id","prediction","probability","uncertainty","far"'
    assert len(scores) == 4
    served = tenfold.load(tmp_path / "copy")
    assert [len(answer) for answer in served(torch.zeros(3, 1, 8, 8))] == [3, 3]
    assert "is the file that is read" in refused(capsys, "export", whole, "--to", "safetensors", "--out", whole)


def test_a_folder_of_images_is_named_by_its_files(whole, tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        Image.new("RGB", (20 + number, 12), (40 * number, 100, 30)).save(folder / name)
    done(capsys, *VERB, "score", whole, folder, "--out", tmp_path / "scores.csv")
    rows = [line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ['"a.png"', '"b.jpg"', '"more/c.png"']
    told = [json.loads(line) for line in done(capsys, "predict", whole, folder / "b.jpg").splitlines()]
    assert told[0]["uncertainty"] == pytest.approx(float(rows[1][3]), abs=1e-6)
    (folder / "d.png").write_bytes(b"no image")
    assert "1 of 4 images" in refused(capsys, *VERB, "score", whole, folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.json", {"extra": {"example": {"x": {"shape": [10**12], "type": "float32"}}}}, "damaged at"),
        ("model.json", {"extra": {"example": {"x": {"shape": [8], "type": "load"}}}}, "damaged at"),
        ("model.json", {"arguments": {"weights": "/etc/passwd"}}, "damaged at weights"),
        ("model.json", {"arguments": {"arguments": {"checkpoint_path": "x"}}}, "a file may not ask for"),
        ("model.json", {"builder": "factory", "arguments": {"factory": "os:getcwd"}}, "allow it by name"),
        ("estimator.json", {"features": {"taps": [{"path": "1", "function": "__import__"}]}}, "features is damaged"),
        ("estimator.json", {"estimator": {"hidden": [10**13]}}, "damaged estimator"),
        ("estimator.json", {"passes": 0}, "not an estimator's manifest"),
        ("estimator.json", {"fingerprint": {"probe": {"shape": [2**20] * 3}}}, "recipe of inputs is damaged"),
        ("estimator.json", {"fingerprint": {"probe": {"type": "load"}}}, "not an estimator's manifest"),
    ],
)
def test_damaged_and_hostile_model_folders_get_one_line(whole, tmp_path, capsys, file, change, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.json", "model.safetensors", "estimator.json", "estimator.safetensors"):
        (folder / name).write_bytes((whole / name).read_bytes())

    def changed(values, new):
        return {**values, **{k: changed(values[k], v) if isinstance(v, dict) and isinstance(values.get(k), dict) else v
                             for k, v in new.items()}}  # fmt: skip

    (folder / file).write_text(json.dumps(changed(json.loads((folder / file).read_text()), change)))
    image = tmp_path / "image.npy"
    np.save(image, np.zeros((1, 1, 8, 8), dtype=np.uint8))
    assert message in refused(capsys, "predict", folder, image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dropout.rate", "0"], "dropout.rate must be greater than 0; got 0"),
        (["--dropout.rate", "1.5"], "must be less than 1"),
        (["--estimator.taps", "[nowhere]"], "no module 'nowhere'"),
        (["--dropout.places", "[nowhere]"], "no dropout at 'nowhere'"),
        (["--estimator.passes", "1"], "greater than or equal to 2"),
        (["--estimator.target", "regression"], "one number per input"),
        (["--estimator.target", "spread"], "estimator.target"),
        (["--data.auxiliary", "5000"], "leaves none"),
        (["--data.auxiliary", "10"], "too few to judge an estimator"),
        (["--data.rows", "10"], "data.rows 10 has no effect on 'digits'"),
        (["--data.name", "movielens-1m", "--data.root", "."], "holds no MovieLens 1m"),
        (["--data.name", "criteo", "--data.root", "."], "holds no Criteo log"),
        (["--companions", "[nothing]"], "no task 'nothing'"),
        (["--companions", "[digits]"], "not the run's own"),
        (["--ensemble", "1"], "at least 2, or 0"),
        (["--model.name", "ratings"], "does not fit"),
        (["--model.arguments", "{widths: []}"], "cannot be built"),
        (["--model.name", "factory"], "give both"),
        (["--model.name", "factory", "--model.factory", "networks_for_tests:sequential"], "no dropout"),
    ],
)
def test_wrong_settings_get_one_line_and_leave_nothing(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(str(SHARED))
    if "--model.name" in arguments and "--model.arguments" not in arguments:
        arguments = [*arguments, "--model.arguments", "{}"]
    line = refused(capsys, "run", "activation-uncertainty", "--quiet", "--out", tmp_path / "run", *arguments)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_predictions_of_neighbours_become_scores(tmp_path, capsys):
    random = np.random.default_rng(0)
    passes = random.dirichlet([1, 1, 1], size=(10, 4))
    np.save(tmp_path / "mc.npy", passes.reshape(40, 3))
    arguments = ("import", "activation-uncertainty", tmp_path / "mc.npy", "--out", tmp_path / "scores.csv")
    done(capsys, *arguments, "--passes", "10")
    rows = [line.split(",") for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]]
    best = passes.mean(0).argmax(1)
    expected = passes.std(0, ddof=1)[range(4), best]
    assert [float(row[2]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert "not 7 passes" in refused(capsys, *arguments, "--passes", "7")
    np.savez(tmp_path / "mc.npz", passes)
    assert "an archive of arrays" in refused(capsys, *arguments[:2], tmp_path / "mc.npz", "--passes", "2")
