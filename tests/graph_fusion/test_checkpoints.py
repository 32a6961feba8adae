"""Others' trained encoders: names, shapes and orders, checked by the published formulas."""

import math

import pytest
import torch
from graph_for_tests import small_graph

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.encoders.official_checkpoints import import_checkpoint

GRAPH = small_graph()
N, R, D = GRAPH.num_entities, GRAPH.num_relations, 4
HEADS, RELATIONS = torch.tensor([2, 7]), torch.tensor([1, 1 + R])


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def save(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def rotate_state(width, **more):
    gamma = 6.0
    return {
        "gamma": torch.tensor([gamma]),
        "embedding_range": torch.tensor([(gamma + 2) / D]),
        "entity_embedding": random(N, 2 * D),
        "relation_embedding": random(R, width),
        **more,
    }


def test_rotate(tmp_path):
    state = rotate_state(D)
    found = import_checkpoint(save(tmp_path, {"step": 1, "model_state_dict": state}), GRAPH)
    assert (found.builder, found.source) == ("rotate", "RotatE")
    scores = found.scorer.score_all(HEADS, RELATIONS)
    re, im = state["entity_embedding"].chunk(2, 1)
    entity = torch.complex(re, im)
    phase = state["relation_embedding"][1] / (state["embedding_range"] / math.pi)
    rotation = torch.complex(phase.cos(), phase.sin())
    torch.testing.assert_close(scores[0], 6.0 - (entity[2] * rotation - entity).abs().sum(1))
    torch.testing.assert_close(scores[1], 6.0 - (entity * rotation - entity[7]).abs().sum(1))


def test_hake_keeps_its_weights(tmp_path):
    state = rotate_state(3 * D, phase_weight=torch.tensor([[0.7]]), modulus_weight=torch.tensor([[2.0]]))
    found = import_checkpoint(save(tmp_path, {"model_state_dict": state}), GRAPH)
    assert found.builder == "hake"
    assert found.scorer.phase_weight.item() == pytest.approx(0.7) and found.scorer.modulus_weight.item() == 2


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("name", ["complex", "distmult", "transe"])
def test_libkge(tmp_path, name, reciprocal):
    width = 2 * D if name == "complex" else D
    prefix = "_base_model." if reciprocal else ""
    entities, relations = random(N, width), random((2 if reciprocal else 1) * R, width)
    state = {
        f"{prefix}_entity_embedder._embeddings.weight": entities,
        f"{prefix}_relation_embedder._embeddings.weight": relations,
    }
    options = {"model": name}
    if reciprocal:
        options = {"model": "reciprocal_relations_model", "reciprocal_relations_model": {"base_model": {"type": name}}}
    found = import_checkpoint(save(tmp_path, {"config": {"options": options}, "model": [state, {}]}), GRAPH)
    scores = found.scorer.score_all(HEADS, RELATIONS)

    def formula(h, r, t):
        if name == "distmult":
            return (h * r * t).sum(-1)
        if name == "transe":
            return -(h + r - t).abs().sum(-1)
        (h1, h2), (r1, r2), (t1, t2) = (value.chunk(2, -1) for value in (h, r, t))
        return (h1 * r1 * t1 + h2 * r1 * t2 + h1 * r2 * t2 - h2 * r2 * t1).sum(-1)

    torch.testing.assert_close(scores[0], formula(entities[2], relations[1], entities), atol=1e-5, rtol=1e-5)
    if reciprocal:
        expected = formula(entities[7], relations[1 + R], entities)
    else:
        expected = formula(entities, relations[1], entities[7])
    torch.testing.assert_close(scores[1], expected, atol=1e-5, rtol=1e-5)


def test_pykeen_models_score_as_before(tmp_path):
    pytest.importorskip("pykeen")
    from tenfold.systems.graph_fusion.encoders.pykeen_scorer import PyKEENScorer, make_pykeen_model

    for name in ("DistMult", "TransE", "ComplEx"):
        model = make_pykeen_model(
            name, GRAPH.train, N, R, embedding_dim=D, **({"scoring_fct_norm": 1} if name == "TransE" else {})
        )
        path = save(tmp_path, model.state_dict())
        found = import_checkpoint(path, GRAPH, encoder=name.lower())
        ours, theirs = (
            found.scorer.score_all(HEADS, RELATIONS),
            PyKEENScorer(model.eval(), N, R).score_all(HEADS, RELATIONS),
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        with pytest.raises(UserError, match="names no model"):
            import_checkpoint(path, GRAPH)


def test_compgcn(tmp_path):
    """Names of the official layers and ConvE decoder; written from our own model under theirs."""
    from tenfold.systems.graph_fusion import build_encoder

    torch.manual_seed(0)
    ours = build_encoder("compgcn", GRAPH, {"dim": 16, "decoder_options": {"channels": 3, "kernel": 3, "width": 4}})
    ours.set_graph(GRAPH.train[:, [0, 2]].T.contiguous(), GRAPH.train[:, 1].contiguous(), torch.ones(len(GRAPH.train)))
    names = {"layers.0.": "conv1.", "tower.convolution.": "m_conv1.", "tower.project.": "fc.", "tower.bn": "bn"}
    state = {}
    for key, value in ours.state_dict().items():
        if key in ("edges", "kinds", "norms"):
            continue
        for mine, theirs in names.items():
            if key.startswith(mine):
                key = theirs + key.removeprefix(mine)
        state["bias" if key == "entity_biases" else key] = value
    content = {"state_dict": state, "args": {"opn": "corr", "k_w": 4, "score_func": "conve"}}
    found = import_checkpoint(save(tmp_path, content), GRAPH)
    torch.testing.assert_close(found.scorer.score_all(HEADS, RELATIONS), ours.eval().score_all(HEADS, RELATIONS))


def test_rows_are_brought_into_our_order(tmp_path):
    state = rotate_state(D)
    plain = import_checkpoint(save(tmp_path, {"model_state_dict": state}), GRAPH).scorer
    back = list(reversed(GRAPH.entities))
    (tmp_path / "entities.dict").write_text("".join(f"{n}\t{key}\n" for n, key in enumerate(back)))
    state["entity_embedding"] = state["entity_embedding"].flip(0)
    moved = import_checkpoint(
        save(tmp_path, {"model_state_dict": state}), GRAPH, str(tmp_path / "entities.dict")
    ).scorer
    torch.testing.assert_close(moved.score_all(HEADS, RELATIONS), plain.score_all(HEADS, RELATIONS))
    (tmp_path / "entities.dict").write_text("0\te000\n")
    with pytest.raises(UserError, match="misses 23"):
        import_checkpoint(tmp_path / "checkpoint", GRAPH, str(tmp_path / "entities.dict"))


class Dangerous:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(2)}, "is no checkpoint of"),
        ([1, 2], "not a checkpoint"),
        ({"model_state_dict": rotate_state(D) | {"entity_embedding": torch.zeros(3, 2 * D)}}, "of another graph"),
        ({"model_state_dict": rotate_state(5 * D)}, "neither RotatE nor HAKE"),
        (
            {
                "config": {"options": {"model": "tucker"}},
                "model": [{"_entity_embedder._embeddings.weight": torch.zeros(2, 2)}],
            },
            "'tucker'",
        ),
        ({"model_state_dict": Dangerous()}, "nothing was executed"),
    ],
)
def test_wrong_files_are_refused(tmp_path, capsys, content, message):
    with pytest.raises(UserError, match=message):
        import_checkpoint(save(tmp_path, content), GRAPH)
    assert "executed\n" not in capsys.readouterr().out
