"""The verbs on a finished run, on folders of pictures of all kinds, and what they refuse."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.cli import main
from tenfold.systems.dual_encoder.index.visual_index import VisualIndex
from tenfold.systems.dual_encoder.load import load

QUESTION = "what color is at nw"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with pictures of several sizes and modes, one broken, one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(8):
        size = (20 + number, 30, 3) if number % 2 else (16, 16, 4)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def indexed(finished_run, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("indexed") / "index"
    assert main(["dual-encoder", "index", str(finished_run("dual-encoder")), str(out), f"--images=[{pictures}]"]) == 0
    return out


def said(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured
    return captured.err


def test_an_index_is_built_asked_searched_and_thinned(finished_run, pictures, indexed, tmp_path, capsys):
    run = finished_run("dual-encoder")
    opened = VisualIndex.open(indexed)
    assert len(opened) == 8 and [name.endswith("broken.jpg") for name in opened.manifest.skipped] == [True]
    rows = [json.loads(line) for line in said(capsys, "dual-encoder", "ask", run, indexed, QUESTION).splitlines()]
    direct = [json.loads(line) for line in said(
        capsys, "predict", run, *[row["image"] for row in rows], "--question", QUESTION).splitlines()]  # fmt: skip
    assert [row["answer"] for row in rows] == [row["answer"] for row in direct]
    ranked = said(capsys, "dual-encoder", "search", run, indexed, QUESTION, "--answer", "red", "--top_k", 3)
    probabilities = [json.loads(line)["probability"] for line in ranked.splitlines()]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    again = json.loads(said(capsys, "dual-encoder", "index", run, tmp_path / "copy", f"--images=[{pictures}]",
                            "--kind", "int8"))  # fmt: skip
    assert (again["images"], again["left_out"], again["bytes_per_image"]) == (8, 1, 4 + 8)
    name = rows[0]["image"]
    thinner = json.loads(said(capsys, "dual-encoder", "index", run, tmp_path / "copy", f"--delete=[{name}]",
                              "--verify", "true"))  # fmt: skip
    assert thinner["images"] == 7


def test_a_checklist_chooses_thresholds_and_writes_its_table(finished_run, indexed, tmp_path, capsys):
    run = finished_run("dual-encoder")
    (tmp_path / "list.txt").write_text("is there a red circle\nis there a blue square\n")
    names = list(VisualIndex.open(indexed).ids())
    labels = [{"image": name, "question": q, "label": n % 2 == 0}
              for q in ("is there a red circle", "is there a blue square") for n, name in enumerate(names)]  # fmt: skip
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    found = json.loads(said(
        capsys, "dual-encoder", "checklist", run, indexed, tmp_path / "list.txt", "--labels", tmp_path / "labels.jsonl",
        "--recall", 0.75, "--out", tmp_path / "list.json", "--table", tmp_path / "table.csv"))  # fmt: skip
    assert all(check["recall"] >= 0.75 for check in found["checks"])
    rows = list(csv.reader((tmp_path / "table.csv").open()))
    assert len(rows) == 9 and {answer for row in rows[1:] for answer in row[1:]} <= {"yes", "no", "unsure"}
    again = json.loads(said(capsys, "dual-encoder", "checklist", run, indexed, tmp_path / "list.json"))
    assert [check["yes"] for check in again["checks"]] == [check["yes"] for check in found["checks"]]


def test_bench_times_every_way(finished_run, capsys):
    found = json.loads(said(capsys, "dual-encoder", "bench", finished_run("dual-encoder"), "--questions", 2,
                            "--images", 8, "--batch_sizes", "[2]", "--repeats", 1))  # fmt: skip
    assert len(found) == 5 and all(row["pairs_per_second"]["median"] > 0 for row in found.values())


def test_answers_are_written_and_judged_again(finished_run, tmp_path, capsys):
    run = finished_run("dual-encoder")
    found = json.loads(said(capsys, "evaluate", run, "--predictions", tmp_path / "answers.csv"))
    assert found["questions"] == 40 and len((tmp_path / "answers.csv").read_text().splitlines()) == 40
    results = json.loads((run / "results.json").read_text())
    assert found["accuracy"] == pytest.approx(results["metrics"]["dide"]["accuracy"])


def test_the_exported_towers_answer_as_the_model(finished_run, tmp_path, capsys):
    run, runtime = finished_run("dual-encoder"), pytest.importorskip("onnxruntime")
    said(capsys, "export", run, "--to", "onnx", "--out", tmp_path)
    model = load(run)
    text, mask = model.tokenizer.batch([QUESTION], model.tokenizer.max_tokens)
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def ran(name, **feeds):
        session = runtime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        return session.run(None, {key: value.numpy() for key, value in feeds.items()})[0]

    t = torch.from_numpy(ran("text_tower", text=text, text_mask=mask))
    v = torch.from_numpy(ran("image_tower", pixels=pixels))
    scores = torch.from_numpy(ran("answer_head", text_vector=t, image_vectors=v[:, None]))
    with torch.no_grad():
        torch.testing.assert_close(scores, model.model(text, mask, pixels[:, None]), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_done_is_one_line(finished_run, pictures, indexed, tmp_path, capsys):
    run = finished_run("dual-encoder")
    (tmp_path / "empty").mkdir()
    room = "dual-encoder"
    for arguments, word in (
        ((room, "index", run, tmp_path / "x", f"--images=[{tmp_path / 'empty'}]"), "holds no images"),
        ((room, "index", run, tmp_path / "x", "--images=[nowhere]"), "nowhere"),
        ((room, "index", run, pictures, f"--images=[{pictures}]"), "not empty"),
        ((room, "ask", run, tmp_path / "empty", QUESTION), "holds no index"),
        ((room, "ask", run, indexed, "word " * 60), "limit of 40"),
        ((room, "ask", run, indexed, QUESTION, "--images=[other.png]"), "no image"),
        ((room, "search", run, indexed, QUESTION, "--answer", "maybe"), "maybe"),
        ((room, "serve", run, f"[{indexed}]", "--host", "0.0.0.0"), "--token"),
        ((room, "serve", run, f"[{indexed}]", "--token", "short"), "at least 16"),
        (("predict", run, pictures / "0.png"), "--question"),
        (("predict", run, pictures / "broken.jpg", "--question", "what"), "broken.jpg"),
        (("import", room, pictures / "0.png"), "0.png"),
        (("evaluate", run, "--data", "folder", "--root", "nowhere", "--file", "x.csv"), "nowhere"),
    ):
        assert word in refused(capsys, *arguments), arguments
    manifest = json.loads((indexed / "index.json").read_text())
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/index.json").write_text(json.dumps(manifest | {"fingerprint": "0"}))
    for name in ("000000.vectors", "000000.ids"):
        (tmp_path / "damaged" / name).write_bytes((indexed / name).read_bytes())
    assert "another model" in refused(capsys, room, "ask", run, tmp_path / "damaged", QUESTION)
    (tmp_path / "damaged/000000.vectors").write_bytes(b"")
    assert "cut short" in refused(capsys, room, "ask", run, tmp_path / "damaged", QUESTION)
