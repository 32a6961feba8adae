"""Tiles and shards give the numbers of the plain computation (spec 2.11, 9.4)."""

import os
import subprocess
import sys

import pytest
import torch
from graph_for_tests import batch_of, small_graph

from tenfold.errors import UserError
from tenfold.systems.graph_fusion import Learning, build_encoder
from tenfold.systems.graph_fusion.batches import QueryBatches
from tenfold.systems.graph_fusion.method import full_scores_loss
from tenfold.systems.graph_fusion.tiles import (
    approximate_topk,
    ordered_keys,
    rows_within,
    split_keys,
    tile_size,
    tiled_cross_entropy,
    tiled_topk,
)


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


@pytest.mark.parametrize("name", ["distmult", "hash-text"])
def test_a_softmax_that_is_too_large_is_taken_in_tiles(monkeypatch, name):
    """The loss and its gradients stay the same; distances have no tiles and say so."""
    graph = small_graph()
    encoder = build_encoder(name, graph, {"dim": 8})
    batch = next(iter(QueryBatches(graph.known("train"), 8, seed=0)))
    learning = Learning()
    assert learning.needs_all_scores(encoder, 8)
    plain = learning.supervised(encoder.eval(), batch, encoder.score_all(batch.heads, batch.relations))
    monkeypatch.setattr("tenfold.systems.graph_fusion.objectives.too_large", lambda *_: True)
    assert not learning.needs_all_scores(encoder, 8)
    tiled = learning.supervised(encoder, batch, None)
    assert tiled.item() == pytest.approx(plain.item(), abs=1e-5)
    parameters = list(encoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(tiled, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="'sampled'"):
        learning.supervised(build_encoder("transe", graph, {"dim": 8}), batch, None)


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


WORKER = """
import sys, torch, torch.distributed as dist
from tenfold.systems.graph_fusion.sharded import shard_rows, sharded_cross_entropy, sharded_topk
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
generator = torch.Generator().manual_seed(0)
queries = torch.randn(6, 4, generator=generator).mul(2).round()
entities = torch.randn(23, 4, generator=generator).round()
answers = torch.randint(23, (6,), generator=generator)
own = slice(rank * 3, rank * 3 + 3)
q = queries[own].clone().requires_grad_()
e = shard_rows(entities, rank, world).clone().requires_grad_()
loss = sharded_cross_entropy(q, e, answers[own], tile=5)
loss.backward()
scores, ids = sharded_topk(queries[own], shard_rows(entities, rank, world), 7, tile=4)
one, table = queries.clone().requires_grad_(), entities.clone().requires_grad_()
expected = torch.nn.functional.cross_entropy(one @ table.T, answers)
expected.backward()
torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
torch.testing.assert_close(q.grad, one.grad[own], atol=1e-6, rtol=1e-5)
torch.testing.assert_close(e.grad, shard_rows(table.grad, rank, world), atol=1e-6, rtol=1e-5)
order = (queries @ entities.T).sort(dim=1, descending=True, stable=True)
assert torch.equal(ids, order.indices[:, :7]) and torch.equal(scores, order.values[:, :7])
print("same", rank)
"""


def test_two_processes_are_one(tmp_path):
    """Loss, gradients and best lists, ties by smaller id (trap 2)."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(tmp_path / "worker.py"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("same") == 2
