"""Run folders: work done once, the next free name, one run at a time, results before pages, steps shared by workers."""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from steps_for_tests import open_square

from tenfold.errors import TenfoldWarning, UserError
from tenfold.files import read_json, write_atomically
from tenfold.results import Cost, Results
from tenfold.run import _log_to, log, open_run, read_config
from tenfold.workers import Step, do_steps


@dataclass
class Inner:
    devices: int = 1


@dataclass
class Settings:
    preset: str = "tiny"
    rate: float = 0.1
    trainer: Inner = field(default_factory=Inner)


def start(folder=None, **options):
    settings = Settings(**options.pop("settings", {}))
    return open_run(settings, system="boosted-exits", out=folder, quiet=True, **options)


def test_a_step_is_done_once_and_read_back(tmp_path):
    calls = []

    def work(folder):
        calls.append(folder)
        return {"value": 0.1 + 0.2, "list": (1, 2)}

    run = start(tmp_path / "run")
    first = run.step("arm/seed0", work)
    run.close()
    second = start(tmp_path / "run", resume=True).step("arm/seed0", work)
    assert first == second == {"value": 0.1 + 0.2, "list": [1, 2]}
    assert len(calls) == 1


def test_seconds_add_up_over_resumptions(tmp_path):
    run = start(tmp_path / "run")
    run.step("one", lambda folder: {})
    run.close()
    write_atomically(tmp_path / "run" / "steps" / "seconds.json", "1000.0")
    assert start(tmp_path / "run", resume=True).seconds > 1000


def test_config_is_complete_and_only_the_experiment_must_agree(tmp_path):
    start(tmp_path / "run").close()
    assert read_config(tmp_path / "run") == {
        "system": "boosted-exits", "preset": "tiny", "rate": 0.1, "trainer": {"devices": 1},
    }  # fmt: skip
    start(tmp_path / "run", resume=True, settings={"trainer": Inner(devices=2)}).close()
    with pytest.raises(UserError, match="another rate"):
        start(tmp_path / "run", resume=True, settings={"rate": 0.2})


def test_default_folders_are_numbered_and_resume_finds_the_unfinished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = start()
    write_atomically(first.folder / "results.json", "{}")
    second = start()
    second.close()
    assert [str(run.folder) for run in (first, second)] == ["runs/boosted-exits/tiny", "runs/boosted-exits/tiny-2"]
    assert start(resume=True).folder == second.folder


def test_processes_started_from_outside_need_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("TENFOLD_RUN_FOLDER", raising=False)
    with pytest.raises(UserError, match="--out"):
        start()


@pytest.mark.parametrize("content", ["", "a: [", "- 1", "preset: tiny"])
def test_what_is_no_config_gets_one_line(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml") as refused:
        read_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_two_runs_do_not_share_a_folder_and_a_run_that_ended_lets_go(tmp_path):
    run = start(tmp_path / "run")
    with pytest.raises(UserError, match="another run is at work"):
        start(tmp_path / "run", resume=True)
    run.close()
    start(tmp_path / "run", resume=True).close()


@pytest.mark.parametrize("left", [["steps/"], [".lock"], [".123-config.yaml", ".lock"], ["log.txt"], []])
def test_a_kill_while_the_folder_is_made_leaves_one_that_a_run_takes(tmp_path, left):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("")
    start(folder).close()
    assert read_config(folder)["rate"] == 0.1


@pytest.mark.parametrize("content", ["", "system: 3", "- a list", "&a [*a]", "a: " * 3000])
def test_a_damaged_configuration_is_not_resumed(tmp_path, content):
    start(tmp_path / "run").close()
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        start(tmp_path / "run", resume=True)


def test_a_damaged_result_of_a_step_is_named_with_the_way_on(tmp_path):
    run = start(tmp_path / "run")
    run.step("one", lambda folder: {"a": 1})
    (tmp_path / "run" / "steps" / "one" / "result.json").write_text('{"a"')
    with pytest.raises(UserError, match="remove the folder"):
        run.step("one", lambda folder: {})


def test_results_come_before_the_page_and_a_page_that_fails_is_a_warning(tmp_path, monkeypatch):
    import tenfold.report

    def fails(results, path):
        raise IndexError("no rows")

    monkeypatch.setattr(tenfold.report, "write_report", fails)
    results = Results(system="boosted-exits", preset="tiny", seed=0, version="0", claims=[], metrics={}, environment={},
                      cost=Cost(params=1, flops=1, seconds=1, peak_memory_mb=1))  # fmt: skip
    run = start(tmp_path / "run")
    with pytest.warns(TenfoldWarning, match="tenfold report"):
        run.finish(results)
    assert (tmp_path / "run" / "results.json").exists()


def test_steps_give_the_same_in_any_number_of_workers_and_are_done_once(tmp_path):
    phases = [[Step(f"a/{n}", (n,)) for n in range(3)], [Step("b", (7,))]]
    alone, shared = start(tmp_path / "alone"), start(tmp_path / "shared")
    one = do_steps(alone, phases, partial(open_square, 1), workers=1)
    two = do_steps(shared, phases, partial(open_square, 1), workers=2)
    assert [found["value"] for found in two.values()] == [found["value"] for found in one.values()] == [1, 2, 5, 50]
    assert list(two) == ["a/0", "a/1", "a/2", "b"]
    assert {found["process"] for found in one.values()} == {os.getpid()}
    assert os.getpid() not in {found["process"] for found in two.values()}
    assert do_steps(shared, phases, partial(open_square, None), workers=2) == two  # nothing is done again
    with pytest.raises(UserError, match="a step refuses"):
        do_steps(shared, [[Step("c", (1,)), Step("d", (1,))]], partial(open_square, None), workers=2)


def test_json_that_is_none_gets_one_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for path in (tmp_path / "a.json", tmp_path / "b.json"):
        with pytest.raises(UserError, match=path.name):
            read_json(path)


def test_a_log_on_a_full_disk_says_nothing(capsys):
    _log_to(Path("/dev/full"))
    try:
        log.info("a line that finds no room")
    finally:
        _log_to(None)
    assert capsys.readouterr().err == ""
