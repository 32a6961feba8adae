"""The experiment end to end: a whole run, killed and resumed, its commands, and bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from graph_for_tests import small_graph

from tenfold import load_results
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.systems.graph_fusion.experiment.delivery import choose_student
from tenfold.systems.graph_fusion.experiment.from_settings import make_encoder
from tenfold.systems.graph_fusion.experiment.settings import PRESETS, Config, arms_of
from tenfold.systems.graph_fusion.fusion.objectives import warm_schedule

SHARED = Path(__file__).parents[1] / "shared"
FAST = {
    "seeds": 1,
    "arms": "[m2l]",
    "structure.arguments": "{dim: 16, channels: 4, normalize: false}",
    "text.arguments": "{dim: 16}",
    "fusion.warm_epochs": 6,
    "fusion.mutual_epochs": 2,
    "fusion.rounds": 1,
    "fusion.phase_epochs": 2,
    "fusion.threshold": 0.1,
}


def with_shared():
    return os.pathsep.join([str(SHARED), os.environ.get("PYTHONPATH", "")])


def start(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": with_shared()}
    command = [
        sys.executable,
        "-m",
        "tenfold",
        "run",
        "graph-fusion",
        "--out",
        str(folder),
        "--quiet",
        *(f"--{name}={value}" for name, value in FAST.items()),
        *arguments,
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    delivered = next(table for table in results["tables"] if table["id"] == "delivered")
    for row in delivered["rows"]:
        row.pop(2)  # a time
    return {name: results[name] for name in ("claims", "metrics", "plots", "tables")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "whole"
    finish(start(folder))
    return folder


def test_killed_run_resumes_to_the_same_numbers(whole, tmp_path):
    folder, sign = tmp_path / "killed", "steps/vem2l/seed0/round-1/m-step/last.ckpt"  # in the middle of an EM round
    process = start(folder)
    while not (folder / sign).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    finish(start(folder, "--resume"))
    assert numbers(folder) == numbers(whole)


def test_the_results_say_what_was_measured(whole):
    results = load_results(whole / "results.json")
    assert {claim.id for claim in results.claims} >= {"structure-gain", "text-gain", "ensemble-share", "served-alone"}
    served = next(claim for claim in results.claims if claim.id == "served-alone")
    assert served.holds
    assert {plot.id for plot in results.plots} >= {"mrr", "precision", "degrees", "validation"}
    precision = next(plot for plot in results.plots if plot.id == "precision")
    assert precision.series and any(value is not None for value in precision.series[0].y)
    for arm in ("alone", "m2l", "vem2l"):
        assert 0 < results.metrics[f"{arm}, structure"]["mrr"] < 1
        ranks = np.load(whole / f"steps/{arm}/seed0/ranks.npz", allow_pickle=False)
        mrr = (1 / ranks["structure_rank_realistic"]).mean()
        assert results.metrics[f"{arm}, structure"]["mrr"] == pytest.approx(mrr)  # every table can be recomputed
    lines = (whole / "steps/vem2l/seed0/densified.tsv").read_text().splitlines()
    assert lines[0].split("\t")[:4] == ["head", "relation", "tail", "round"]
    assert len(lines) > 1 and (whole / "steps/m2l/seed0/densified.tsv").read_text().count("\n") == 1


def test_the_best_stage_may_be_the_warm_start(whole):
    """Fusion never makes an encoder worse on validation than it was."""
    outcomes = {
        arm: json.loads((whole / f"steps/{arm}/seed0/result.json").read_text()) for arm in ("alone", "m2l", "vem2l")
    }
    for side in ("structure", "text"):
        values = [outcomes[arm]["sides"][side]["validation_mrr"] for arm in ("alone", "m2l", "vem2l")]
        assert values == sorted(values)


def test_commands_on_a_run(whole, tmp_path, capsys):
    def call(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    found = json.loads(call("evaluate", whole))
    assert found["split"] == "valid" and found["side"] == "structure"
    answers = json.loads(call("predict", whole, "virus, affects", "--k", "4"))
    assert len(answers["answers"]) == 4 and {"entity", "name", "probability", "known"} <= answers["answers"][0].keys()
    (tmp_path / "queries.tsv").write_text("virus\taffects\n?\taffects\tvirus\n")
    lines = call("predict", whole, tmp_path / "queries.tsv").splitlines()
    assert [json.loads(line)["direction"] for line in lines] == ["tail", "head"]
    new = json.loads(call("predict", whole / "students" / "text", "retro virus, affects", "--new_entity", "true"))
    assert len(new["answers"]) == 10
    reasons = json.loads(call("graph-fusion", "explain", whole, "virus", "affects", "organism"))
    assert {"rank", "same_answer", "between", "shared"} <= reasons.keys()
    table = call("graph-fusion", "complete", whole, "--top", "5", "--min_confidence", "0").splitlines()
    assert len(table) == 6 and table[0].endswith("structure_rank\ttext_rank")
    files = json.loads(call("graph-fusion", "predictions", whole, tmp_path / "json"))
    rescored = json.loads(call("graph-fusion", "rescore", files["tail"], files["head"]))
    assert rescored["both"]["mrr"] == pytest.approx(found["both"]["mrr"], abs=1e-5)
    call("export", whole, "--side", "text", "--out", tmp_path / "text")
    assert json.loads(call("evaluate", tmp_path / "text"))["side"] == "text"
    thin = json.loads(call("graph-fusion", "sparsify", "umls", tmp_path / "thin", "--fraction", "0.2"))
    assert thin["train"] == 1043
    described = json.loads(call("graph-fusion", "describe", "thin", "--root", tmp_path))
    assert described["triples"]["train"] == 1043


def test_the_test_split_is_not_evaluated_twice_unasked(whole, capsys):
    assert main(["evaluate", str(whole), "--split", "test"]) == 2
    assert "already evaluated (1 time)" in capsys.readouterr().err
    assert main(["evaluate", str(whole), "--split", "test", "--again", "true"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = load_results(whole / "results.json").metrics["vem2l, structure"]["mrr"]
    assert found["both"]["mrr"] == pytest.approx(expected, abs=1e-5)
    assert main(["evaluate", str(whole), "--split", "test"]) == 2
    assert "2 times" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "[nothing]"], "no arm 'nothing'"),
        (["--data.name", "nowhere", "--data.root", "."], "holds no graph"),
        (["--data.fraction", "0"], "(0, 1]"),
        (["--structure.name", "nothing"], "no encoder"),
        (["--structure.arguments", "{dims: 3}"], "its arguments are"),
        (["--fusion.temperature", "0"], "must be above 0"),
        (["--fusion.batch_size", "1"], "at least 2"),
        (["--text.name", "bi-encoder"], "local transformers checkpoint"),
        (["--structure.weights", "nowhere.safetensors"], "cannot read"),
        (
            [
                "--structure.name",
                "factory",
                "--structure.factory",
                "graph_for_tests:wrong_shape",
                "--structure.arguments",
                "{}",
            ],
            "must score all 135",
        ),
        (
            [
                "--structure.name",
                "factory",
                "--structure.factory",
                "graph_for_tests:not_a_number",
                "--structure.arguments",
                "{}",
            ],
            "not finite",
        ),
    ],
)
def test_wrong_settings_end_with_one_line_and_nothing_half_written(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.syspath_prepend(str(SHARED))
    assert main(["run", "graph-fusion", "--out", str(tmp_path / "run"), "--quiet", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("query", "message"),
    [("nobody, affects", "no entity"), ("virus, nothing", "no relation"), ("virus", "is no query")],
)
def test_wrong_queries_end_with_one_line(whole, capsys, query, message):
    assert main(["predict", str(whole), query]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_delivery_heeds_its_limits():
    """``auto``: the better encoder on validation among those that fit; else the one that exceeds least, with a note."""
    validation = {"structure": 0.3, "text": 0.4}
    costs = {"structure": {"memory_mb": 10.0, "latency_ms": 1.0}, "text": {"memory_mb": 100.0, "latency_ms": 0.5}}

    def chosen(**limits):
        return choose_student(Config(deliver="auto", **limits), validation, costs)

    assert chosen() == ("text", "")
    assert chosen(memory_limit_mb=50) == ("structure", "")
    assert chosen(latency_limit_ms=0.6) == ("text", "")
    side, note = chosen(memory_limit_mb=5)
    assert side == "structure" and "2.0 times" in note
    assert choose_student(Config(deliver="structure", memory_limit_mb=1), validation, costs) == ("structure", "")


def test_all_presets_are_whole():
    """Arms exist, settings are in range, and the published ones ask for the checkpoint they need."""
    for name, preset in PRESETS.items():
        assert preset.preset == name and arms_of(preset)[-1] == "vem2l"
        assert preset.fusion.gate == "threshold"  # looks at no held-out fact
    paper = PRESETS["paper"]
    with pytest.raises(UserError, match="local transformers checkpoint"):
        make_encoder(paper, small_graph(), "text")
    assert make_encoder(paper, small_graph(), "structure").init_embed.shape == (24, 100)
    rising = [warm_schedule(4, 10, True)(step) for step in range(11)]
    assert rising[:4] == [0.25, 0.5, 0.75, 1.0] and rising[4] == 1.0 and rising[10] == 0.0
