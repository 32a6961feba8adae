"""The contract holds for every encoder; scores are those of the formulas."""

import math
import warnings

import pytest
import torch
from graph_for_tests import batch_of, plain, small_graph, wrong_shape

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import build_encoder, check_scorer
from tenfold.systems.graph_fusion.encoders.hash_text import HashText

GRAPH = small_graph(unseen=1)
SMALL_CONVE = {"dim": 16, "channels": 4}
ENCODERS = {
    "transe": {"dim": 8},
    "distmult": {"dim": 8},
    "complex": {"dim": 8},
    "rotate": {"dim": 8},
    "hake": {"dim": 8},
    "conve": SMALL_CONVE,
    "compgcn": {"dim": 16, "decoder_options": {"channels": 4, "kernel": 3}},
    "hash-text": {"dim": 8},
}


def build(name, checkpoint=None, graph=GRAPH):
    torch.manual_seed(0)
    arguments = {"checkpoint": checkpoint} if name in ("bi-encoder", "pair-scorer") else ENCODERS[name]
    encoder = build_encoder(name, graph, arguments)
    encoder.set_graph(
        graph.train[:, [0, 2]].T.contiguous(), graph.train[:, 1].contiguous(), torch.ones(len(graph.train))
    )
    return encoder.eval()


@pytest.mark.parametrize("name", [*ENCODERS, "bi-encoder", "pair-scorer"])
def test_the_contract(name, checkpoint):
    encoder = build(name, checkpoint)
    check_scorer(encoder, "tested")
    heads, relations = torch.tensor([0, 5, 5]), torch.tensor([0, 1, 4])
    with torch.no_grad():
        scores = encoder.score_all(heads, relations)
        candidates = torch.tensor([[0, 3], [7, 7], [24, 1]])
        torch.testing.assert_close(
            encoder.score_candidates(heads, relations, candidates), scores.gather(1, candidates), atol=1e-5, rtol=1e-5
        )
        owner, answers, shared = torch.tensor([0, 2, 2]), torch.tensor([3, 1, 24]), torch.tensor([5, 5, 0, 9])
        own, further = encoder.score_answers(heads, relations, owner, answers, shared)
        torch.testing.assert_close(own, scores[owner, answers], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(further, scores[:, shared], atol=1e-5, rtol=1e-5)
        with encoder.encoded():  # cached = fresh while nothing is learnt
            torch.testing.assert_close(encoder.score_all(heads, relations), scores)
        assert not torch.allclose(scores[1], encoder.score_all(heads, torch.tensor([0, 4, 1]))[1])  # an inverse differs
    encoder.train()
    encoder.begin_step(torch.tensor([1, 2]))
    with encoder.encoded():
        encoder.score_all(heads, relations).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_rotate_is_the_official_formula():
    model = build("rotate")
    e, r = model.entity_embedding.detach(), model.relation_embedding.detach()
    h, t = (torch.complex(*e[k].chunk(2)) for k in (2, 7))
    phase = r[1] / (model.embedding_range / math.pi)
    rotation = torch.complex(phase.cos(), phase.sin())
    scores = model.score_all(torch.tensor([2, 7]), torch.tensor([1, 1 + GRAPH.num_relations]))
    tail = model.gamma - (h * rotation - t).abs().sum()
    head = model.gamma - (rotation.conj() * t - h).abs().sum()  # the head-batch formula
    torch.testing.assert_close(scores[0, 7], tail)
    torch.testing.assert_close(scores[1, 2], head)
    torch.testing.assert_close(head, tail)


def test_hake_is_the_official_formula():
    model = build("hake")
    with torch.no_grad():
        model.relation_embedding.copy_(torch.randn(model.relation_embedding.shape))
    e, r = model.entity_embedding.detach(), model.relation_embedding.detach()
    (phase_h, mod_h), (phase_t, mod_t) = (e[k].chunk(2) for k in (2, 7))
    phase_r, mod_r, bias_r = r[1].chunk(3)
    scale = model.embedding_range / math.pi
    mod_r = mod_r.abs()
    bias_r = bias_r.clamp(max=1)
    bias_r = torch.where(bias_r < -mod_r, -mod_r, bias_r)
    phase = ((phase_h + phase_r - phase_t) / scale / 2).sin().abs().sum() * model.phase_weight.detach()
    length = (mod_h * (mod_r + bias_r) - mod_t * (1 - bias_r)).norm(2) * model.modulus_weight.detach()
    expected = (model.gamma - phase - length).squeeze()
    scores = model.score_all(torch.tensor([2, 7]), torch.tensor([1, 1 + GRAPH.num_relations]))
    torch.testing.assert_close(scores[0, 7], expected)
    torch.testing.assert_close(scores[1, 2], expected)  # head prediction is the same formula


def test_conve_lays_out_pictures_as_asked():
    from tenfold.systems.graph_fusion.encoders.conve import ConvTower

    heads, relations = torch.arange(16.0)[None], 100 + torch.arange(16.0)[None]
    seen = {}
    for arrange in ("stack", "interleave"):
        tower = ConvTower(16, channels=2, arrange=arrange, normalize=False).eval()
        tower.convolution.register_forward_pre_hook(lambda _, inputs, a=arrange: seen.update({a: inputs[0]}))
        tower(heads, relations)
    assert seen["stack"].flatten()[:3].tolist() == [0, 1, 2]
    assert seen["interleave"].flatten()[:4].tolist() == [0, 100, 1, 101]


def test_compgcn_weighs_edges():
    """An edge of weight 0 is no edge; normalization is per direction, by weighted degrees."""
    graph = small_graph()
    model = build("compgcn", graph=graph)
    heads, relations = torch.arange(4), torch.arange(4)
    edges, kinds = graph.train[:, [0, 2]].T.contiguous(), graph.train[:, 1].contiguous()
    model.set_graph(edges[:, :30], kinds[:30], torch.ones(30))
    fewer = model.score_all(heads, relations)
    weights = torch.ones(len(kinds))
    weights[30:] = 0
    model.set_graph(edges, kinds, weights)
    torch.testing.assert_close(model.score_all(heads, relations), fewer)
    model.set_graph(torch.tensor([[0, 0], [1, 2]]), torch.tensor([0, 0]), torch.tensor([1.0, 0.5]))
    # Receiver 0 has weighted degree 1.5 along the edges, entities 1 and 2 have none: infinity becomes 0.
    assert model.norms[:2].tolist() == [0, 0]
    model.set_graph(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0]), torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(model.norms[:2], torch.tensor([1.0, 0.25]) / (1.0 * 0.25) ** 0.5)


def test_hash_text_reads_what_it_has_never_seen():
    encoder = build("hash-text")
    with torch.no_grad():
        known = encoder.score_all(torch.tensor([4]), torch.tensor([1]))
        as_text = encoder.score_texts([GRAPH.names[4]], torch.tensor([1]))
        torch.testing.assert_close(as_text, known)  # the same text, the same scores
        new = encoder.score_new_candidates(torch.tensor([4]), torch.tensor([1]), ["place 7 odd", "somewhere else"])
        torch.testing.assert_close(new[0, 0], known[0, 7])
    assert all(
        p.ndim == 0 or p.shape[0] != GRAPH.num_entities for p in encoder.parameters()
    )  # no parameters per entity


def test_texts_that_are_not_read_whole_are_counted():
    texts = ["word " * 40, "word " * 41, "a short one", "x" * 400]
    encoder = HashText(4, 1, entity_texts=texts, relation_texts=["r"], dim=4)
    assert encoder.notes() == ["Of 1 of 4 entity texts only the first 40 words are read."]
    assert build("hash-text").notes() == build("distmult").notes() == []


@pytest.mark.parametrize("name", ["distmult", "transe", "compgcn", "hash-text", "rotate"])
def test_the_sampled_losses_are_their_formulas_and_look_at_no_other_entity(name, monkeypatch):
    """The sampled softmax estimates the full one; nssa weighs negatives by alpha; neither scores all entities."""
    from tenfold.systems.graph_fusion.fusion.sampled_losses import sampled_softmax_loss, self_adversarial_loss

    encoder = build(name)
    batch = batch_of([[3], [5, 9], [20]])
    batch.heads, batch.relations = torch.tensor([0, 1, 2]), torch.tensor([0, 4, 1])
    scores = encoder.score_all(batch.heads, batch.relations).detach()
    monkeypatch.setattr(encoder, "score_all", None)
    torch.manual_seed(1)
    found = sampled_softmax_loss(encoder, batch, 16)
    torch.manual_seed(1)
    drawn = torch.randint(25, (16,))
    expected = 0.0
    for row, answer, weight in zip(batch.owner, batch.answers, batch.weights, strict=True):
        known = torch.isin(drawn, batch.answers[batch.owner == row])
        others = (scores[row, drawn] - math.log(16 / 25))[~known]
        total = torch.cat([scores[row, answer][None], others]).logsumexp(0)
        expected += weight * (total - scores[row, answer]) / 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.manual_seed(1)
    found = self_adversarial_loss(encoder, batch, 8, alpha=0.5)
    torch.manual_seed(1)
    drawn = torch.randint(25, (4, 8))
    expected = 0.0
    for place, (row, answer) in enumerate(zip(batch.owner, batch.answers, strict=True)):
        false = torch.isin(drawn[place], batch.answers[batch.owner == row])
        negative = scores[row, drawn[place]][~false]
        weights = (0.5 * negative).softmax(0)
        log = torch.nn.functional.logsigmoid
        expected -= (log(scores[row, answer]) + (weights * log(-negative)).sum()) / 8
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_neighbour_names_never_show_the_answer(checkpoint):
    """Neighbours come from the training split, and while training without the query's answers."""
    encoder = build_encoder("bi-encoder", GRAPH, {"checkpoint": checkpoint, "neighbour_names": True})
    h, r, t = GRAPH.train[0].tolist()
    train = {(a, b) for a, _, b in GRAPH.train.tolist()} | {(b, a) for a, _, b in GRAPH.train.tolist()}
    near = sorted(b for a, b in train if a == h)
    everything = f"{GRAPH.names[h]}: {' '.join(GRAPH.names[n] for n in near)}"
    queries = torch.tensor([h]), torch.tensor([r])
    assert encoder.eval().query_texts(*queries) == [everything]  # no validation or test edge
    without = f"{GRAPH.names[h]}: {' '.join(GRAPH.names[n] for n in near if n != t)}"
    assert encoder.train().query_texts(*queries) == [without]
    backward = torch.tensor([t]), torch.tensor([r + GRAPH.num_relations])
    assert GRAPH.names[h] not in encoder.query_texts(*backward)[0].split(": ")[1].replace(GRAPH.names[t], "")


@pytest.mark.parametrize("model", ["DistMult", "RotatE", "TransE", "ConvE"])
@pytest.mark.parametrize("inverse", [True, False])
def test_pykeen_models_answer_as_pykeen_does(model, inverse):
    """Our r + R is PyKEEN's 2r + 1; head queries are its predict_h."""
    pytest.importorskip("pykeen")
    if model == "ConvE" and not inverse:
        pytest.skip("ConvE needs inverse relations")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"embedding_dim": 16, "inverse": inverse}
        if model == "ConvE":
            arguments |= {"output_channels": 4}
        scorer = build_encoder(f"pykeen/{model}", GRAPH, arguments).eval()
        heads, relations = torch.tensor([3, 9]), torch.tensor([0, 2])
        ours = scorer.score_all(heads, relations)
        theirs = scorer.model.predict_t(torch.stack([heads, relations], 1))
        torch.testing.assert_close(ours, theirs)
        backward = scorer.score_all(heads, relations + GRAPH.num_relations)
        torch.testing.assert_close(backward, scorer.model.predict_h(torch.stack([relations, heads], 1)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("transe", {"norm": 3}, "norm must be one of 1, 2"),
        ("distmult", {"inverse": "other"}, "inverse must be one of"),
        ("compgcn", {"decoder": "none"}, "decoder must be one of"),
        ("compgcn", {"layers": 0}, "layers must be a whole number of at least 1"),
        ("complex", {"dim": 2**50}, "complex: "),
        ("conve", {"dim": "wide"}, "dim must be a whole number"),
        ("hash-text", {"dropout": 2}, "dropout"),
        ("pair-scorer", {"negatives": 0, "checkpoint": "x"}, "negatives must be"),
    ],
)
def test_arguments_without_meaning_are_refused(name, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(name, GRAPH, arguments)
    assert "\n" not in str(caught.value)


def test_encoders_of_the_users_own():
    encoder = build_encoder("factory", GRAPH, {"dim": 4}, "graph_for_tests:plain")
    check_scorer(encoder, "own")
    assert encoder.has_vectors
    with pytest.raises(UserError, match="must score all 25 entities"):
        check_scorer(wrong_shape(GRAPH), "own")
    for factory, message in (
        ("nowhere:f", "cannot be imported"),
        ("graph_for_tests:small_graph", "cannot be called|not a QueryScorer"),
    ):
        with pytest.raises(UserError, match=message):
            build_encoder("factory", GRAPH, {}, factory)
    assert plain(GRAPH).query_vectors(torch.tensor([0]), torch.tensor([5])).shape == (1, 8)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nothing", {}, "no encoder"),
        ("conve", {"dims": 8}, "its arguments are"),
        ("conve", {"dim": 7}, "cannot lay"),
        ("bi-encoder", {}, "checkpoint"),
        ("bi-encoder", {"checkpoint": "/nowhere"}, "no transformers checkpoint"),
        ("pykeen/Nothing", {}, "no model"),
    ],
)
def test_wrong_encoders_are_told_in_one_line(name, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build_encoder(name, GRAPH, arguments)
    assert "\n" not in str(caught.value)
