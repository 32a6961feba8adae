"""Text encoders on a checkpoint as transformers writes it: read, fused, saved, and served without it."""

import shutil
from pathlib import Path

import pytest
import torch
from graph_for_tests import small_graph

from tenfold.systems.graph_fusion import Learning, Student, build_encoder, fuse_encoders
from tenfold.systems.graph_fusion.experiment.from_settings import schedule_of
from tenfold.systems.graph_fusion.experiment.settings import FusionOptions
from tenfold.training.options import TrainerOptions

GRAPH = small_graph(unseen=1)


def test_the_checkpoints_own_vectors_are_read(checkpoint):
    """Both towers start from the checkpoint's weights; pooling and pairs are those of the recipes."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert {path.name for path in Path(checkpoint).iterdir()} >= {"config.json", "model.safetensors"}
    bi = build_encoder("bi-encoder", GRAPH, {"checkpoint": checkpoint}).eval()
    pair = build_encoder("pair-scorer", GRAPH, {"checkpoint": checkpoint}).eval()
    with torch.no_grad():
        tokens = tokenizer([GRAPH.names[3], GRAPH.names[12]], return_tensors="pt", padding=True)
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][:, :, None]
        means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        torch.testing.assert_close(bi.entity_vectors(torch.tensor([3, 12])), means)
        torch.testing.assert_close(pair.entity_vectors(torch.tensor([3, 12])), hidden[:, 0])
        inverse = f"inverse {GRAPH.relation_texts[1]}"
        first = model(**tokenizer(GRAPH.names[3], inverse, return_tensors="pt")).last_hidden_state
        query = torch.tensor([3]), torch.tensor([1 + GRAPH.num_relations])
        torch.testing.assert_close(pair.query_vectors(*query), first[:, 0])
        torch.testing.assert_close(bi.query_vectors(*query), torch.nn.functional.normalize(first.mean(1), dim=-1))


def test_texts_that_are_not_read_whole_are_counted(checkpoint):
    longest = max(len(tokens) for tokens in tokens_of(checkpoint))
    cut = sum(len(tokens) == longest for tokens in tokens_of(checkpoint))
    encoder = build_encoder("bi-encoder", GRAPH, {"checkpoint": checkpoint, "max_tokens": longest - 1, "chunk": 7})
    (note,) = encoder.notes()
    assert note.startswith(f"Of {cut} of 25 entity texts only the first {longest - 1} tokens are read")
    assert build_encoder("pair-scorer", GRAPH, {"checkpoint": checkpoint, "max_tokens": longest}).notes() == []


def tokens_of(checkpoint):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(checkpoint)(list(GRAPH.names))["input_ids"]


@pytest.mark.parametrize(
    ("name", "more", "loss"),
    [
        ("bi-encoder", {"previous": 16, "neighbour_names": True, "refresh": 2}, "infonce"),
        ("pair-scorer", {}, "softmax"),
    ],
)
def test_fused_saved_and_served_without_the_checkpoint(tmp_path, checkpoint, name, more, loss):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    arguments = {"checkpoint": str(folder), **more}
    torch.manual_seed(0)
    result = fuse_encoders(
        build_encoder("distmult", GRAPH, {"dim": 8}),
        build_encoder(name, GRAPH, arguments),
        GRAPH,
        folder=tmp_path / "fusion",
        schedule=schedule_of(
            FusionOptions(
                batch_size=8, warm_epochs=1, mutual_epochs=1, rounds=1, phase_epochs=1, max_queries=16, top_k=8
            )
        ),
        learning={"structure": Learning(), "text": Learning(loss=loss, learning_rate=1e-3)},
        trainer=TrainerOptions(loggers=[], gradient_clip=10.0),
    )
    assert {row["stage"].split("-")[0] for row in result.fusion.history} == {"warm", "mutual", "round"}
    encoder = result.fusion.pair.text
    start = build_encoder(name, GRAPH, arguments)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(encoder.query_tower.parameters(), start.query_tower.parameters(), strict=True)
    )
    student = Student.of(encoder, GRAPH, builder=name, arguments=arguments)
    student.save(tmp_path / "student")
    shutil.rmtree(folder)  # the student brings its own architecture, tokenizer and weights
    loaded = Student.load(tmp_path / "student")
    queries = torch.tensor([0, 5]), torch.tensor([1, 4])
    torch.testing.assert_close(loaded.score(*queries), student.score(*queries), atol=1e-6, rtol=1e-6)
    assert loaded.predict("e003", "r1", k=3) == student.predict("e003", "r1", k=3)
    if name == "bi-encoder":
        assert loaded.predict_text("place 7 odd", "r0", k=2)[0].probability > 0
