"""The experiment end to end: a whole run, killed and resumed, its commands, and bad input."""

import contextlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_for_tests import small_graph

import tenfold
from tenfold import load_results
from tenfold.cli import main
from tenfold.errors import UserError
from tenfold.report import write_report
from tenfold.systems.graph_fusion.experiment import recipe
from tenfold.systems.graph_fusion.experiment.comparison import tables_of
from tenfold.systems.graph_fusion.experiment.delivery import choose_student
from tenfold.systems.graph_fusion.experiment.from_settings import make_encoder
from tenfold.systems.graph_fusion.experiment.settings import PRESETS, Config, DataOptions, arms_of, data_of
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


def strangers_graph(folder):
    """A graph of somebody's own: who lives where, who knows whom, with names that say something of it."""
    cities, countries = ["paris", "lyon", "rome", "turin", "oslo", "bergen"], ["france", "italy", "norway"]
    people = ["ada", "bo", "cleo", "dan", "eva", "finn", "gus", "hal", "ida", "jon", "kim", "lea"]
    people += [f"{name}_2" for name in people]
    facts = [(city, "part_of", countries[n // 2]) for n, city in enumerate(cities)]
    for n, person in enumerate(people):
        facts += [
            (person, "lives_in", cities[n % 6]),
            (person, "citizen_of", countries[n % 6 // 2]),
            (person, "knows", people[(n + 6) % 24]),
            (person, "knows", people[(n + 12) % 24]),
            (person, "works_with", people[(n + 1) % 24]),
        ]
    (folder / "facts.tsv").write_text("".join("\t".join(fact) + "\n" for fact in facts))
    names = {city: f"the city of {city} in {countries[n // 2]}" for n, city in enumerate(cities)}
    names |= {country: f"the country {country}" for country in countries}
    names |= {person: f"{person} from {cities[n % 6]}" for n, person in enumerate(people)}
    (folder / "names.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in names.items()))
    return facts


def commands_of_the_readme():
    readme = Path(recipe.__file__).parents[1] / "README.md"
    text = readme.read_text(encoding="utf-8").split("## On your own graph")[1]
    return [shlex.split(line)[1:] for line in text.split("```bash\n")[1].split("```")[0].splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on a stranger's graph with texts, by the commands of the README."""
    folder = tmp_path_factory.mktemp("recipe")
    strangers_graph(folder)
    (command,) = [command for command in commands_of_the_readme() if command[0] == "run"]
    with contextlib.chdir(folder):
        assert main([*command, "--quiet", "--workers=1", *(f"--{name}={value}" for name, value in FAST.items())]) == 0
    return folder / "runs" / "mine"


def test_the_commands_of_the_readme_work_on_a_strangers_graph(whole, capsys):
    """None of the facts that were given is proposed as new; what the preset does with its own graph is not done."""
    files, printed = whole.parents[1], {}
    with contextlib.chdir(files):
        for command in commands_of_the_readme():
            if command[0] != "run":
                assert main(command) == 0, (command, capsys.readouterr().err)
                printed[" ".join(command[:3])] = capsys.readouterr().out
    given = {tuple(line.split("\t")) for line in (files / "facts.tsv").read_text().splitlines()}
    new = [tuple(line.split("\t")[:3]) for line in (files / "new.tsv").read_text().splitlines()[1:]]
    assert new and not given & set(new)
    results = load_results(whole / "results.json")
    assert results.environment["train_triples"] + 2 * results.environment["test_triples"] == len(given)
    assert any("126 triples was split at random" in note for note in results.notes)
    assert "of 126" not in " ".join(results.notes).replace("One file of 126", "")  # nothing was thinned
    answers = [json.loads(line) for line in printed["predict runs/mine ada, lives_in"].splitlines()]
    assert [answer["direction"] for answer in answers] == ["tail", "head"]
    assert (whole / "export" / "model.onnx").exists()
    told = json.loads(printed["graph-fusion describe facts.tsv"])
    assert told["entities"] == 33 and told["triples"]["train"] == results.environment["train_triples"]


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


def test_the_python_of_the_readme_runs(tmp_path):
    readme = Path(recipe.__file__).parents[1] / "README.md"
    code = readme.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict = {}
    with contextlib.chdir(tmp_path):
        exec(compile(code, "README.md", "exec"), names)
    assert len(names["answers"]) == 5


def test_commands_on_a_run(whole, tmp_path, capsys):
    def call(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    found = json.loads(call("evaluate", whole))
    assert found["split"] == "valid" and found["side"] == "structure"
    (tmp_path / "queries.tsv").write_text("ada\tlives_in\n?\tlives_in\toslo\n")
    lines = call("predict", whole, tmp_path / "queries.tsv").splitlines()
    assert [json.loads(line)["direction"] for line in lines] == ["tail", "head"]
    reasons = json.loads(call("graph-fusion", "explain", whole, "ada", "knows", "bo"))
    assert {"rank", "same_answer", "between", "shared"} <= reasons.keys()
    table = call("graph-fusion", "complete", whole, "--top", "5", "--min_confidence", "0").splitlines()
    assert len(table) == 6 and table[0].endswith("structure_rank\ttext_rank")
    files = json.loads(call("graph-fusion", "predictions", whole, tmp_path / "json"))
    rescored = json.loads(call("graph-fusion", "rescore", files["tail"], files["head"]))
    assert rescored["both"]["mrr"] == pytest.approx(found["both"]["mrr"], abs=1e-5)
    call("export", whole, "--side", "text", "--out", tmp_path / "text")
    assert json.loads(call("evaluate", tmp_path / "text"))["side"] == "text"
    assert tenfold.load(tmp_path / "text").predict("ada", "knows", k=1)[0].rank == 1
    thin = json.loads(call("graph-fusion", "sparsify", "umls", tmp_path / "thin", "--fraction", "0.2"))
    assert thin["train"] == 1043
    (tmp_path / "thin" / "train.txt").write_text((tmp_path / "thin" / "train.txt").read_text() * 2)
    assert main(["graph-fusion", "describe", "thin", "--root", str(tmp_path)]) == 2
    assert "with --duplicates drop" in capsys.readouterr().err
    described = json.loads(call("graph-fusion", "describe", "thin", "--root", tmp_path, "--duplicates", "drop"))
    assert described["triples"]["train"] == 1043


def test_nothing_injected_is_no_error(whole, tmp_path):
    """Tables without rows are left out of the page."""
    outcomes = {
        arm: [json.loads((whole / f"steps/{arm}/seed0/result.json").read_text())] for arm in ("alone", "m2l", "vem2l")
    }
    for made in outcomes["vem2l"][0]["rounds"]:
        made |= {"injected": 0, "true_share": None}
    ensembles = [json.loads((whole / "steps/ensemble/seed0/result.json").read_text())]
    delivered = json.loads((whole / "steps/delivery/result.json").read_text())
    results = load_results(whole / "results.json")
    results.tables = tables_of(outcomes, ensembles, delivered)
    assert "rounds" not in {table.id for table in results.tables}
    write_report(results, tmp_path / "report.html")


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
        (["--data.name", "nowhere", "--data.root", "."], "holds no graph"),
        (["--structure.name", "nothing"], "no encoder"),
        (["--structure.arguments", "{dims: 3}"], "its arguments are"),
        (["--structure.arguments", "{dim: 16, channels: ../up}"], "may not ask for"),
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
    [
        ("nobody, knows", "no entity"),
        ("ada, nothing", "no relation"),
        ("ada", "is no query"),
        (f"{'x' * 300}, knows", "no entity"),
        (f"{'x/' * 3000}", "is no query"),
        ("ada\0, knows", "no entity"),
    ],
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


def test_a_preset_speaks_of_its_own_graph_alone():
    own, notes = data_of(PRESETS["tiny"])
    assert (own.fraction, own.entities) == (0.1, 0) and "fraction 0.1" in notes[0]
    for name, preset in PRESETS.items():
        other, notes = data_of(replace(preset, data=DataOptions(name="mine.tsv")))
        assert (other.fraction, other.entities, other.truth, notes) == (1.0, 0, None, []), name
    asked, _ = data_of(replace(PRESETS["tiny"], data=DataOptions(name="umls", fraction=1.0)))
    assert asked.fraction == 1.0
    asked, _ = data_of(replace(PRESETS["small"], data=DataOptions(name="mine.tsv", fraction=0.5)))
    assert asked.fraction == 0.5 and asked.truth is None


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
    assert rising[:5] == [0.0, 0.25, 0.5, 0.75, 1.0] and rising[10] == 0.0  # transformers' linear schedule
