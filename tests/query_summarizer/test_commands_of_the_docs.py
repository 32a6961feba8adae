"""Every command of the guide's pages about summaries and diffs, on a stranger's files."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import wiki_for_tests as wiki
from safetensors.torch import load_file, save_file

from tenfold.cli import main
from tenfold.systems.query_summarizer.sets.generated import generate_topics

GUIDE = Path(__file__).parents[2] / "docs"


def commands(page):
    """The commands of its shell blocks, without comments, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (GUIDE / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip()]


def run_page(page, capsys, *more):
    """Run all of them; what ``tenfold run`` gets beside tells it to be quick."""
    printed = []
    for words in commands(page):
        capsys.readouterr()
        assert main([*words, *(more if words[0] == "run" else ())]) == 0, (words, capsys.readouterr().err)
        printed.append(capsys.readouterr().out)
    return printed


def write_rows(path, topics, summaries=True):
    rows = [
        {"query": t.query, "documents": [d.text for d in t.documents], "group": t.id}
        | ({"summaries": [list(reference) for reference in t.references]} if summaries else {})
        for t in topics
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def test_summarize_my_folder(tmp_path, monkeypatch, capsys, finished_run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER/old").mkdir(parents=True)
    (tmp_path / "FOLDER/news.html").write_text("<p>The bridge was closed by a storm in May.</p><p>Rain fell.</p>")
    (tmp_path / "FOLDER/old/note.txt").write_text("Nobody came. The old bridge was built by two men in a year.")
    (tmp_path / "RUN").symlink_to(finished_run("query-summarizer").absolute())
    plain, explained, as_json, short, *_ = run_page("summarize-my-folder.md", capsys)
    assert "(old/note.txt:13-59" in plain
    assert "without a trained model" in plain
    assert ", query -" in explained
    assert len(json.loads(as_json)["quotes"]) == 2
    assert sum(len(line.split("  (")[0].split()) - 1 for line in short.splitlines() if line[0] == "[") <= 30


def test_train_on_my_queries(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mwparserfromhell")
    pytest.importorskip("warcio")
    pytest.importorskip("resiliparse")
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", generate_topics(9, 1))
    write_rows(tmp_path / "test.jsonl", generate_topics(3, 2))
    write_rows(tmp_path / "other.jsonl", generate_topics(2, 3))
    write_rows(tmp_path / "questions.jsonl", generate_topics(2, 4), summaries=False)
    (tmp_path / "WARCS").mkdir()
    wiki.dump(tmp_path / "enwiki-pages-articles1.xml.bz2", dict(list(wiki.articles().items())[8:14]))
    wiki.warc(tmp_path / "WARCS/pages.warc.gz")
    quick = ["--seeds", "1", "--workers", "1", "--stage2.epochs", "1", "--model.encoder", "hashed-16", "--quiet"]
    printed = run_page("train-on-my-queries.md", capsys, *quick)
    assert len(printed[1].splitlines()) == 2
    assert "ROUGE-2" in printed[2]
    assert all(0.0 in json.loads(line)["labels"] for line in (tmp_path / "labelled.jsonl").read_text().splitlines())
    assert all(json.loads(line)["document"] for line in (tmp_path / "wikiref/train.jsonl").read_text().splitlines())


def test_ship_the_difference_of_two_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {"weight": torch.randn(40, 40), "bias": torch.randn(40)}
    tuned = {"weight": base["weight"].clone(), "bias": base["bias"]}
    tuned["weight"][3, 5] += 1
    save_file(base, "base.safetensors")
    save_file(tuned, "tuned.safetensors")
    run_page("sparse.md", capsys)
    assert torch.equal(load_file("again.safetensors")["weight"], tuned["weight"])
