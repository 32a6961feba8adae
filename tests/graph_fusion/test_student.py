"""One encoder served alone: in a fresh process, without the other or its libraries."""

import json

import pytest
import torch
from graph_for_tests import small_graph
from warm import warm_process

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import Student, build_encoder
from tenfold.systems.graph_fusion.ranking.ranks import evaluate_encoder
from tenfold.systems.graph_fusion.ranking.summaries import summarise_ranks
from tenfold.systems.graph_fusion.serve.simkgc_json import metrics_of_predictions, write_predictions

GRAPH = small_graph(unseen=1)
ARGUMENTS = {
    "conve": {"dim": 16, "channels": 4},
    "hash-text": {"dim": 8},
    "compgcn": {"dim": 16, "decoder": "distmult"},
}


def student(name="conve", graph=GRAPH):
    torch.manual_seed(0)
    encoder = build_encoder(name, graph, ARGUMENTS[name])
    weights = torch.rand(len(graph.train))
    encoder.set_graph(graph.train[:, [0, 2]].T.contiguous(), graph.train[:, 1].contiguous(), weights)
    return Student.of(encoder, graph, injected=torch.tensor([[0, 0, 9]]), builder=name, arguments=ARGUMENTS[name])


FRESH = """
import json, sys
for name in ("transformers", "pykeen", "lightning", "sklearn"):
    sys.modules[name] = None  # an import of it fails
from tenfold.systems.graph_fusion import Student
found = []
for line in sys.argv[2:]:  # the lightest first: what a later one needs must not be there yet
    name, others = line.split(":")
    made = Student.load(sys.argv[1] + "/" + name)
    found.append([[a.entity, a.probability] for a in made.predict("e003", "r1", k=5)])
    rooms = ["tenfold.systems.graph_fusion." + other for other in others.split(",")]
    heavy = [other for other in rooms if other in sys.modules]
    assert not heavy, heavy
print(json.dumps(found))
"""


def test_students_load_in_a_fresh_process_without_the_other_encoder(tmp_path):
    others = {
        "conve": "encoders.hash_text,encoders.text_towers,encoders.compgcn,fusion.fusion",
        "compgcn": "encoders.hash_text,encoders.text_towers,fusion.fusion",
        "hash-text": "encoders.text_towers,fusion.fusion",
    }
    expected = []
    for name in others:
        made = student(name)
        made.save(tmp_path / name)
        expected.append([[a.entity, a.probability] for a in made.predict("e003", "r1", k=5)])
    lines = [f"{name}:{modules}" for name, modules in others.items()]
    program = warm_process("torch").start(FRESH, ["fresh", tmp_path, *lines])
    assert program.wait() == 0, program.err()
    for found, wanted in zip(json.loads(program.out().splitlines()[-1]), expected, strict=True):
        assert [a for a, _ in found] == [a for a, _ in wanted]
        assert [p for _, p in found] == pytest.approx([p for _, p in wanted], abs=1e-6)


def test_answers_are_probabilities_and_know_what_is_known():
    made = student()
    h, r, t = GRAPH.train[0].tolist()
    everything = made.predict(GRAPH.entities[h], GRAPH.relations[r], k=100, exclude_known=False)
    assert len(everything) == GRAPH.num_entities
    assert sum(answer.probability for answer in everything) == pytest.approx(1, abs=1e-5)
    assert [answer.probability for answer in everything] == sorted((a.probability for a in everything), reverse=True)
    flags = {answer.entity: answer.known for answer in everything}
    assert flags[GRAPH.entities[t]] == "train"
    new = made.predict(GRAPH.entities[h], GRAPH.relations[r], k=100)
    assert GRAPH.entities[t] not in {answer.entity for answer in new}
    assert all(answer.known is None for answer in new)
    assert sum(answer.probability for answer in new) == pytest.approx(1, abs=1e-5)
    injected = {answer.entity for answer in made.predict("e000", "r0", k=100) if answer.injected}
    assert injected == {"e009"}
    backward = {a.entity for a in made.predict("e009", "r0", direction="head", k=100) if a.injected}
    assert backward == {"e000"}
    unseen = {answer.entity for answer in everything if not answer.seen}
    assert unseen == {"e024"}


def test_facts_that_thinning_removed_are_no_news(tmp_path):
    """They were given: neither answers nor proposals name them, after loading, too."""
    from dataclasses import replace

    hidden = torch.tensor([[h, r, (h + 7) % 24] for h in range(24) for r in range(3)])
    made = student(graph=replace(GRAPH, hidden=hidden))
    made.save(tmp_path)
    for one in (made, Student.load(tmp_path)):
        new = one.predict("e003", "r1", k=100)
        assert "e010" not in {answer.entity for answer in new}
        every = {a.entity: a.known for a in one.predict("e003", "r1", k=100, exclude_known=False)}
        assert every["e010"] == "left out"
        proposed = torch.tensor([row["triple"] for row in one.complete(top=500)])
        assert not (proposed[:, None] == hidden[None]).all(2).any()


def test_new_entities_need_texts():
    text = student("hash-text")
    as_text = text.predict_text("place 4 even", "r1", k=3)
    in_graph = text.predict("e004", "r1", k=3, exclude_known=False)
    assert [a.entity for a in as_text] == [a.entity for a in in_graph]
    assert text.predict_text("a place nobody knows", "r0", direction="head", k=1)[0].probability > 0
    with pytest.raises(UserError, match="text encoder"):
        student().predict_text("place 4 even", "r1")
    with pytest.raises(UserError, match="empty"):
        text.predict_text("  ", "r1")


def test_reasons_show_ids():
    made = student()
    h, r, t = GRAPH.train[0].tolist()
    found = made.explain(GRAPH.entities[h], GRAPH.relations[r], GRAPH.entities[t])
    fact = {"head": GRAPH.entities[h], "relation": GRAPH.relations[r], "tail": GRAPH.entities[t]}
    assert fact in found["between"]
    assert found["answer"]["entity"] == GRAPH.entities[t] and found["rank"] >= 1
    train = {tuple(triple) for triple in GRAPH.train.tolist()}
    for row in found["same_answer"]:
        assert (GRAPH.entities.index(row["entity"]), r, t) in train


@pytest.mark.parametrize("name", ["conve", "hash-text"])
def test_new_facts_are_new_and_sorted(name):
    made = student(name)
    rows = made.complete(top=20)
    assert len(rows) == 20
    known = GRAPH.known()
    assert not bool(known.contains(torch.tensor([row["triple"] for row in rows])).any())
    confidence = [row["probability"] for row in rows]
    assert confidence == sorted(confidence, reverse=True)
    assert all(0 <= row["hit_rate"] <= 1 for row in rows)
    assert made.complete(min_confidence=1.1) == []
    assert len(made.rank_of([row["triple"] for row in rows])) == 20


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (("nobody", "r0"), "no entity 'nobody'"),
        (("e001", "r9"), "no relation 'r9'"),
    ],
)
def test_unknown_names_are_told(query, message):
    with pytest.raises(UserError, match=message):
        student().predict(*query)
    with pytest.raises(UserError, match="k must be"):
        student().predict("e001", "r0", k=0)


def test_damaged_students_are_refused(tmp_path):
    made = student()
    made.save(tmp_path)
    for name in ("entities.tsv", "triples.safetensors", "model.safetensors", "model.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError):
            Student.load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(UserError):
            Student.load(tmp_path)
        (tmp_path / name).write_bytes(content)
    Student.load(tmp_path)


def test_a_strangers_folder_does_not_act(tmp_path):
    """Arguments are plain, the text model lies inside, numbers name entities that are there, ids are printable."""
    from safetensors.torch import load_file, save_file

    made = student()
    made.save(tmp_path)
    manifest = json.loads((tmp_path / "model.json").read_text())

    def refused(match, **changes):
        (tmp_path / "model.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(UserError, match=match):
            Student.load(tmp_path)
        (tmp_path / "model.json").write_text(json.dumps(manifest))

    given = manifest["arguments"]["arguments"]
    for more in ({"checkpoint": "../../other"}, {"weights": "http://x"}, {"dim": {"a": 1}}, {"cache_dir": "x"}):
        refused("may not ask|outside its folder", arguments={"arguments": given | more, "factory": None})
    refused("made by code", builder="factory", arguments={"arguments": {}, "factory": "os:system"})
    refused("calibrated", extra={"temperature": "hot"})
    refused("calibrated", extra={"temperature": 1.0, "edges": 2**50})
    tensors = load_file(tmp_path / "triples.safetensors")
    for name in ("train", "injected", "hidden"):
        save_file(tensors | {name: torch.tensor([[0, 0, 99]])}, tmp_path / "triples.safetensors")
        with pytest.raises(UserError, match=r"names an entity|no triples of this graph"):
            Student.load(tmp_path)
    save_file(tensors, tmp_path / "triples.safetensors")
    ids = (tmp_path / "entities.tsv").read_text()
    (tmp_path / "entities.tsv").write_text(ids.replace("e003", "e\x1b[31m3"))
    with pytest.raises(UserError, match="control character"):
        Student.load(tmp_path)


def test_texts_with_tabs_and_lines_survive(tmp_path):
    from dataclasses import replace

    from tenfold.systems.graph_fusion.graph.storage import read_graph, save_graph

    names = ("tab\there", "line\nbreak", "back\\slash \\n", *GRAPH.names[3:])
    save_graph(replace(GRAPH, names=names), tmp_path)
    graph, _ = read_graph(tmp_path)
    assert graph.names == names and torch.equal(graph.test, GRAPH.test)


def test_simkgc_files_give_the_same_metrics(tmp_path):
    made = student()
    for direction in ("tail", "head"):
        write_predictions(made, tmp_path / f"{direction}.json", direction=direction)
    found = metrics_of_predictions(tmp_path / "tail.json", tmp_path / "head.json")
    expected = summarise_ranks(evaluate_encoder(made.scorer, GRAPH, "valid"))
    for number in ("mrr", "hits@1", "hits@10", "queries"):
        assert found["both"][number] == pytest.approx(expected[number])
    (tmp_path / "wrong.json").write_text('[{"rank": 0}]')
    with pytest.raises(UserError, match="prediction 0"):
        metrics_of_predictions(tmp_path / "wrong.json", tmp_path / "head.json")


@pytest.mark.parametrize("name", ["conve", "hash-text", "compgcn"])
def test_scores_export_to_onnx(tmp_path, name):
    pytest.importorskip("onnxruntime")
    from tenfold.systems.graph_fusion.serve.export_scores import export_scores

    made = export_scores(student(name).scorer, tmp_path / "model.onnx")
    assert made.max_difference < 1e-4
