"""Tiles and shards give the numbers of the plain computation."""

import pytest
import torch
from graph_for_tests import batch_of, small_graph
from two_ranks import on_two_ranks

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import Learning, build_encoder, sample_unobserved
from tenfold.systems.graph_fusion.fusion.batches import QueryBatches
from tenfold.systems.graph_fusion.fusion.objectives import SIDES, Exchange, MutualObjective, Pair, PhaseObjective, other
from tenfold.systems.graph_fusion.fusion.teachers import write_teacher
from tenfold.systems.graph_fusion.method import full_scores_loss
from tenfold.systems.graph_fusion.scale.memory import rows_within, tile_size
from tenfold.systems.graph_fusion.scale.sharded import shard_rows, sharded_cross_entropy, sharded_topk
from tenfold.systems.graph_fusion.scale.tiles import tiled_cross_entropy
from tenfold.systems.graph_fusion.scale.top_k import approximate_topk, ordered_keys, split_keys, tiled_topk


def table(rows, width, seed):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile", [1, 7, 100])
def test_tiled_softmax_is_the_full_one(tile):
    queries, entities = table(3, 5, 0).requires_grad_(), table(23, 5, 1).requires_grad_()
    bias = table(23, 1, 2).flatten().requires_grad_()
    batch = batch_of([[0, 3], [1], [22, 5, 6]])
    plain = full_scores_loss(queries @ entities.T + bias, batch, smoothing=0.1)
    expected = torch.autograd.grad(plain, (queries, entities, bias))
    tiled = tiled_cross_entropy(
        queries, entities, batch.owner, batch.answers, batch.weights, bias=bias, smoothing=0.1, tile=tile
    )
    assert tiled.item() == pytest.approx(plain.item(), abs=1e-6)
    for ours, theirs in zip(torch.autograd.grad(tiled, (queries, entities, bias)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def in_tiles_and_in_full(monkeypatch, objective, pair, batch):
    """Loss, gradients and logged parts of one step, computed both ways."""
    found = []
    for tiled in (False, True):
        monkeypatch.setattr("tenfold.systems.graph_fusion.fusion.tiled_losses.too_large", lambda *_, tiled=tiled: tiled)
        torch.manual_seed(0)
        loss, logged = objective(pair, batch)
        parameters = [p for p in pair.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((loss, {name: value for name, value in logged.items() if name != "agreement"}, gradients))
        if isinstance(objective, PhaseObjective):
            objective.forget(pair)
    return found


@pytest.mark.parametrize("phase", ["warm", "mutual", "e-step", "m-step", "reverse", "temperature"])
def test_a_step_that_is_too_large_is_taken_in_tiles(monkeypatch, tmp_path, phase):
    """Supervised loss, M2L and the KL on unobserved queries, and all gradients, stay the same."""
    monkeypatch.setattr("tenfold.systems.graph_fusion.fusion.tiled_losses.tile_size", lambda *_: 7)
    monkeypatch.setattr("tenfold.systems.graph_fusion.scale.tiles.tile_size", lambda *_: 7)
    torch.manual_seed(0)
    graph = small_graph(unseen=2)
    pair = Pair(
        build_encoder("conve", graph, {"dim": 16, "channels": 4, "normalize": False}),
        build_encoder("hash-text", graph, {"dim": 8, "dropout": 0.0}),
    ).eval()
    torch.nn.init.normal_(pair.structure.bias)
    known = graph.known("train")
    exchange = Exchange(
        0.0 if phase == "warm" else 0.7,
        2.0 if phase == "temperature" else 1.0,
        "full",
        {"structure": 1.3, "text": 0.8},
        graph.seen(),
    )
    if phase in ("warm", "mutual"):
        objective = MutualObjective({side: Learning() for side in SIDES}, exchange)
        batch = next(iter(QueryBatches(known, 8, seed=0)))
    else:
        learner = "structure" if phase == "m-step" else "text"
        queries = sample_unobserved(graph, known, seed=0)
        teacher = write_teacher(pair.side(other(learner)), queries, known, tmp_path, k=5)
        batch = next(iter(QueryBatches(known, 8, seed=0, teacher=teacher)))
        objective = PhaseObjective(learner, Learning(), exchange, 1.5, phase == "reverse")
        pair.side(other(learner)).requires_grad_(False)
    (loss, parts, gradients), (tiled, tiled_parts, tiled_gradients) = in_tiles_and_in_full(
        monkeypatch, objective, pair, batch
    )
    torch.testing.assert_close(tiled, loss, atol=1e-5, rtol=1e-5)
    assert tiled_parts.keys() == parts.keys()
    for name, value in parts.items():
        torch.testing.assert_close(tiled_parts[name], value, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(tiled_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_tiles_under_mixed_precision():
    """Tiles stay in single precision; without them the logits are coarse, so that both agree to their digits."""
    queries, entities = table(4, 8, 0).requires_grad_(), table(300, 8, 1).requires_grad_()
    batch = batch_of([[3], [7], [1], [2]])
    with torch.autocast("cpu", torch.bfloat16):
        plain = full_scores_loss(queries @ entities.T, batch, smoothing=0.0)
        tiled = tiled_cross_entropy(queries, entities, batch.owner, batch.answers, batch.weights, tile=64)
    assert tiled.dtype == torch.float32 and tiled.item() == pytest.approx(plain.item(), abs=5e-2)
    for ours, theirs in zip(
        torch.autograd.grad(tiled, (queries, entities)), torch.autograd.grad(plain, (queries, entities)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=1e-1)


def test_what_has_no_tiles_says_so(monkeypatch):
    monkeypatch.setattr("tenfold.systems.graph_fusion.fusion.tiled_losses.too_large", lambda *_: True)
    graph = small_graph()
    text = build_encoder("hash-text", graph, {"dim": 8})
    batch = next(iter(QueryBatches(graph.known("train"), 8, seed=0)))
    calibration = {"structure": 1.0, "text": 1.0}
    learning = {side: Learning() for side in SIDES}
    for name, split, losses, message in (
        ("transe", "full", learning, "cannot be taken in tiles"),
        ("distmult", "exact", learning, "mutual_split 'exact'"),
        ("distmult", "full", {**learning, "structure": Learning(loss="bce")}, "loss 'bce'"),
    ):
        pair = Pair(build_encoder(name, graph, {"dim": 8}), text)
        with pytest.raises(UserError, match=message):
            MutualObjective(losses, Exchange(1.0, 1.0, split, calibration))(pair, batch)


@pytest.mark.parametrize("tile", [1, 6, 50])
def test_tiled_best_lists_are_exact_with_ties_by_id(tile):
    queries, entities = table(4, 3, 0).round(), table(50, 3, 1).round()  # many ties
    scores, ids = tiled_topk(queries, entities, 9, tile=tile)
    order = (queries @ entities.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(ids, order.indices[:, :9])
    assert torch.equal(scores, order.values[:, :9])


def test_keys_sort_as_scores_do():
    scores = torch.tensor([[-torch.inf, -2.5, -0.0, 0.0, 1e-30, 3.0, torch.inf]])
    keys = ordered_keys(scores, torch.arange(7))
    assert keys.argsort(1, descending=True).tolist() == [[6, 5, 4, 2, 3, 1, 0]]
    values, ids = split_keys(keys)
    assert torch.equal(values, scores + 0.0) and ids.tolist() == [list(range(7))]


def test_memory_is_bounded(caplog):
    assert rows_within(1000, 64, budget=10**9) == 64
    assert rows_within(1_000_000, 512, budget=2**28) == 16
    assert rows_within(10**9, 512, budget=2**20) == 1
    assert tile_size(4096, budget=2**26) * 4096 * 16 <= 2**26


def test_nearest_neighbours_report_their_recall():
    pytest.importorskip("faiss")
    queries, entities = table(20, 16, 0), table(500, 16, 1)
    for kind in ("hnsw", "ivf"):
        _, ids, recall = approximate_topk(queries, entities, 5, kind=kind)
        assert ids.shape == (20, 5) and 0.5 < recall <= 1


def test_two_processes_are_one(tmp_path):
    """Loss, gradients and best lists, ties by smaller id."""

    def work(rank):
        queries, entities = table(6, 4, 0).mul(2).round(), table(23, 4, 1).round()
        answers = torch.randint(23, (6,), generator=torch.Generator().manual_seed(2))
        own = slice(rank * 3, rank * 3 + 3)
        q = queries[own].clone().requires_grad_()
        e = shard_rows(entities, rank, 2).clone().requires_grad_()
        loss = sharded_cross_entropy(q, e, answers[own], tile=5)
        loss.backward()
        scores, ids = sharded_topk(queries[own], shard_rows(entities, rank, 2), 7, tile=4)
        one, whole = queries.clone().requires_grad_(), entities.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(one @ whole.T, answers)
        expected.backward()
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(q.grad, one.grad[own], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(e.grad, shard_rows(whole.grad, rank, 2), atol=1e-6, rtol=1e-5)
        order = (queries @ entities.T).sort(dim=1, descending=True, stable=True)
        assert torch.equal(ids, order.indices[:, :7]) and torch.equal(scores, order.values[:, :7])

    on_two_ranks(work, tmp_path)
