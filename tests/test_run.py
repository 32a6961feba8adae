"""Run folders: whole files or none, work done once, the next free name."""

from dataclasses import dataclass, field

import pytest

from tenfold.errors import UserError
from tenfold.run import open_run, read_config, read_json, write_atomically


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


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "a.txt", "one")
    write_atomically(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_text() == "two"
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "missing" / "a.txt"):
        with pytest.raises(UserError, match="cannot write"):
            write_atomically(place, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_step_is_done_once_and_read_back(tmp_path):
    calls = []

    def work(folder):
        calls.append(folder)
        return {"value": 0.1 + 0.2, "list": (1, 2)}

    first = start(tmp_path / "run").step("arm/seed0", work)
    second = start(tmp_path / "run", resume=True).step("arm/seed0", work)
    assert first == second == {"value": 0.1 + 0.2, "list": [1, 2]}
    assert len(calls) == 1


def test_seconds_add_up_over_resumptions(tmp_path):
    run = start(tmp_path / "run")
    run.step("one", lambda folder: {})
    write_atomically(tmp_path / "run" / "steps" / "seconds.json", "1000.0")
    assert start(tmp_path / "run", resume=True).seconds > 1000


def test_config_is_complete_and_only_the_experiment_must_agree(tmp_path):
    start(tmp_path / "run")
    assert read_config(tmp_path / "run") == {
        "system": "boosted-exits", "preset": "tiny", "rate": 0.1, "trainer": {"devices": 1},
    }  # fmt: skip
    start(tmp_path / "run", resume=True, settings={"trainer": Inner(devices=2)})
    with pytest.raises(UserError, match="another rate"):
        start(tmp_path / "run", resume=True, settings={"rate": 0.2})


def test_default_folders_are_numbered_and_resume_finds_the_unfinished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = start()
    write_atomically(first.folder / "results.json", "{}")
    second = start()
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


def test_json_that_is_none_gets_one_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    for path in (tmp_path / "a.json", tmp_path / "b.json"):
        with pytest.raises(UserError, match=path.name):
            read_json(path)
