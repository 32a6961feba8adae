"""The room's own verbs, and checkpoints of PreSumm."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tenfold
from tenfold.cli import main
from tenfold.systems.query_summarizer.rouge.scoring import DUC_MEASURES
from tenfold.systems.query_summarizer.rouge.stemming import find_exceptions
from tenfold.systems.query_summarizer.text.wordpiece import SPECIAL


def call(capsys, *arguments):
    capsys.readouterr()
    code = main(["query-summarizer", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    code, _, error = call(capsys, *arguments)
    assert code == 2
    assert error.count("\n") == 1
    return error


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "one.txt").write_text("Rain fell all day. The bridge was closed by a heavy storm. Nobody came.")
    (tmp_path / "two.html").write_text("<p>The bridge opened again in May.</p><p>It was a fine day.</p>")
    return tmp_path


def test_summarize_with_and_without_a_run(texts, capsys, finished_run):
    asked = ["--query", "When was the bridge closed?", "--words", 12, "--explain", "true"]
    code, out, _ = call(capsys, "summarize", texts / "one.txt", texts / "two.html", *asked)
    assert code == 0
    assert "without a trained model" in out
    assert "one.txt:19-58" in out
    run = finished_run("query-summarizer")
    code, out, _ = call(
        capsys, "summarize", texts, "--query", "the bridge", "--run", run, "--json", "true", "--words", 5
    )
    assert code == 0
    assert json.loads(out)["scorer"].startswith("query-summarizer")
    assert tenfold.load(run)("the bridge", ["The bridge is here and it is old."]).quotes
    assert "no sentence fits" in refused(
        capsys, "summarize", texts / "one.txt", "--query", "x", "--words", 2, "--hard_limit", "true"
    )
    assert "query is empty" in refused(capsys, "summarize", texts, "--query", "  ")
    (texts / "bad.txt").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(capsys, "summarize", texts / "bad.txt", "--query", "x")


def test_evaluate_needs_references(texts, capsys, finished_run):
    run = finished_run("query-summarizer")
    (texts / "topics.jsonl").write_text('{"query": "q", "document": "One two three four five six."}')
    code = main(["evaluate", str(run), "--data", str(texts / "topics.jsonl")])
    assert code == 2
    assert "no summary" in capsys.readouterr().err


def test_documents_are_shown_with_their_marks(finished_run):
    page = (finished_run("query-summarizer") / "documents.html").read_text()
    assert page.count("<mark") > 5
    assert "http" not in page


def test_rouge_of_folders(tmp_path, capsys):
    for folder, name, text in (
        ("peers", "D0601.M.250.A.1", "the cat sat\n"), ("peers", "D0602.M.250.A.1", "a dog ran\n"),
        ("other", "D0601.M.250.A.2", "a cat\n"), ("other", "D0602.M.250.A.2", "a dog ran home\n"),
        ("models", "D0601.M.250.A.A", "the cat sat down\n"), ("models", "D0602.M.250.A.A", "the dog ran home\n"),
    ):  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    peers, models = tmp_path / "peers", tmp_path / "models"
    code, out, _ = call(capsys, "rouge", peers, models, "--porter", "true", "--topics", "true")
    assert code == 0
    assert "1 ROUGE-1 Eval d0601 R:0.75000 P:1.00000 F:0.85714" in out
    code, out, _ = call(capsys, "rouge", peers, models, "--porter", "true", "--against", tmp_path / "other")
    assert "over 2 topics" in out
    if find_exceptions() is not None:
        code, out, _ = call(capsys, "rouge", peers, models, "--duc", "true")
        assert code == 0
        assert [line.split()[1] for line in out.splitlines() if "Average_R" in line] == list(DUC_MEASURES)
    assert "--duc sets measures" in refused(capsys, "rouge", peers, models, "--duc", "true", "--limit", 100)
    (models / "D0602.M.250.A.A").unlink()
    assert "no reference" in refused(capsys, "rouge", peers, models, "--porter", "true")


def test_labels_of_ones_own_rows(tmp_path, capsys):
    row = {
        "query": "bridge",
        "document": ["The bridge fell down.", "Rain fell.", "It was old."],
        "summary": "The bridge fell down.",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for kind, wanted in (("oracle", [1.0, 0.0, 0.0]), ("presumm", [1.0, 0.0, 0.0])):
        code, _, _ = call(
            capsys, "labels", tmp_path / "rows.jsonl", tmp_path / f"{kind}.jsonl", "--kind", kind, "--words", 4
        )
        assert code == 0
        assert json.loads((tmp_path / f"{kind}.jsonl").read_text())["labels"] == wanted
    assert refused(capsys, "labels", tmp_path / "rows.jsonl", tmp_path / "rows.jsonl")


def test_diffs_of_two_files_of_weights(tmp_path, capsys):
    base = {"a": torch.randn(30, 30), "b": torch.randn(5)}
    tuned = {"a": base["a"].clone(), "b": torch.randn(5)}
    tuned["a"][3, 4] += 1
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    code, out, _ = call(
        capsys, "sparse-diff", tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "d"
    )
    assert code == 0
    assert json.loads(out)["entries"] == 1
    diff, new = tmp_path / "d.sft.safetensors", tmp_path / "new.safetensors"
    assert call(capsys, "sparse-apply", tmp_path / "base.safetensors", diff, new)[0] == 0
    assert all(torch.equal(value, tuned[name]) for name, value in load_file(new).items())
    assert "another base" in refused(capsys, "sparse-apply", tmp_path / "tuned.safetensors", diff, tmp_path / "x")
    assert call(capsys, "sparse-info", diff)[0] == 0


class _Optimizer:
    """Stands for the class that PreSumm pickles beside its weights."""


_Optimizer.__module__, _Optimizer.__qualname__, _Optimizer.__name__ = "models.optimizers", "Optimizer", "Optimizer"


def test_a_checkpoint_of_presumm_becomes_a_model(tmp_path, capsys, monkeypatch):
    import sys
    import types

    module = types.ModuleType("models.optimizers")
    module.Optimizer = _Optimizer
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.optimizers", module)
    width, state = 8, {}

    def linear(name, out, inner):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, inner) / 4, torch.zeros(out)

    def norm(name):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    words = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "the", "bridge"]
    for part, size in (("word", len(words)), ("position", 176), ("token_type", 2)):
        state[f"bert.model.embeddings.{part}_embeddings.weight"] = torch.randn(size, width) / 4
    norm("bert.model.embeddings.LayerNorm")
    block = "bert.model.encoder.layer.0"
    for part in ("query", "key", "value"):
        linear(f"{block}.attention.self.{part}", width, width)
    linear(f"{block}.attention.output.dense", width, width)
    norm(f"{block}.attention.output.LayerNorm")
    linear(f"{block}.intermediate.dense", 16, width)
    linear(f"{block}.output.dense", width, 16)
    norm(f"{block}.output.LayerNorm")
    state["ext_layer.pos_emb.pe"] = torch.zeros(1, 5000, width)
    inter = "ext_layer.transformer_inter.0"
    for part in ("linear_keys", "linear_values", "linear_query", "final_linear"):
        linear(f"{inter}.self_attn.{part}", width, width)
    linear(f"{inter}.feed_forward.w_1", 2048, width)
    linear(f"{inter}.feed_forward.w_2", width, 2048)
    norm(f"{inter}.feed_forward.layer_norm")
    norm(f"{inter}.layer_norm")
    norm("ext_layer.layer_norm")
    linear("ext_layer.wo", 1, width)
    torch.save({"model": state, "opt": argparse.Namespace(lr=1), "optim": _Optimizer()}, tmp_path / "bertext.pt")
    monkeypatch.undo()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    arguments = [
        "import",
        "query-summarizer",
        str(tmp_path / "bertext.pt"),
        "--vocabulary",
        str(tmp_path / "vocab.txt"),
    ]
    assert main([*arguments, "--heads", "2", "--out", str(tmp_path / "model")]) == 0, capsys.readouterr().err
    made = tenfold.load(tmp_path / "model").summarize(
        "the bridge", ["The bridge is a bridge here. A cab is a cab here too."], words=5
    )
    assert len(made.quotes) == 1
    assert main(["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 0
