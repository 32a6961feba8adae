"""Two processes give the numbers of one, through the whole schedule."""

import contextlib
import json

import fuse_on_ranks
import pytest
import torch
import torch.distributed as dist
from graph_for_tests import Plain, batch_of, small_graph
from two_ranks import on_two_ranks
from warm import SCRIPT, on_two_processes

from tenfold.systems.graph_fusion.encoders.previous_vectors import PreviousVectors
from tenfold.systems.graph_fusion.fusion import sampled_losses
from tenfold.systems.graph_fusion.fusion.sampled_losses import in_batch_loss
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch


def test_a_fusion_on_two_processes_is_that_on_one(tmp_path):
    """Losses, M2L, EM rounds, teachers, densification and ranks; weighted edges and batch normalization, too."""
    running = on_two_processes(SCRIPT, [fuse_on_ranks.__file__, tmp_path / "two", 2])
    one = fuse_on_ranks.fuse(tmp_path / "one", 1)
    two = json.loads(running.out().splitlines()[-1])
    assert two["injected"] == one["injected"] and two["ranks"] == one["ranks"]
    assert len(two["history"]) == len(one["history"])
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours.pop("stage") == theirs.pop("stage")
        assert ours.keys() == theirs.keys()
        # A rank or a first answer may turn at the last digit, and training multiplies the rounding of sums that were
        # taken in another order; a share of a batch that is lost or counted twice shows in the first decimals.
        for name, value in ours.items():
            margin = 0.1 if name.endswith("agreement") else 0.02 if name.startswith("validation/") else 1e-3
            assert value == pytest.approx(theirs[name], abs=margin, rel=5e-4), name


def test_in_batch_negatives_come_from_all_processes(tmp_path):
    """Averaged gradients are those of one process with the whole batch; so are the vectors kept for later batches."""

    def work(rank):
        graph = small_graph()
        torch.manual_seed(0)
        one, two = Plain(graph), Plain(graph)
        two.load_state_dict(one.state_dict())
        for scorer in (one, two):
            scorer.previous = PreviousVectors(6, 8)
        numbers = torch.arange(6)
        batches = [(numbers + step, numbers % 4, (numbers * 5 + step) % 24) for step in range(3)]

        def learn(scorer, part, alone):
            with monkeypatch_world(alone):
                for h, r, t in batches:
                    owner = torch.arange(len(h[part]))
                    weights, observed = torch.ones(len(owner)), torch.ones(len(owner), dtype=torch.bool)
                    scorer.zero_grad()
                    in_batch_loss(scorer, QueryBatch(h[part], r[part], owner, t[part], weights, observed)).backward()

        learn(one, slice(None), alone=True)
        learn(two, slice(rank * 3, rank * 3 + 3), alone=False)
        for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
            dist.all_reduce(ours.grad)
            torch.testing.assert_close(ours.grad / 2, theirs.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(two.previous.vectors, one.previous.vectors)
        assert torch.equal(two.previous.entities, one.previous.entities)

    on_two_ranks(work, tmp_path)


@contextlib.contextmanager
def monkeypatch_world(alone):
    """Within it, a process counts as the only one."""
    before = sampled_losses.world_size
    sampled_losses.world_size = (lambda: 1) if alone else before
    try:
        yield
    finally:
        sampled_losses.world_size = before


def test_previous_batches_are_further_negatives():
    """Slots that were never filled, true answers and the positive itself do not count; a resumed training has them."""
    graph = small_graph()
    torch.manual_seed(0)
    scorer = Plain(graph)
    batch = batch_of([[1], [2], [3]])
    batch.heads, batch.relations = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0])
    plain = in_batch_loss(scorer, batch)
    scorer.previous = PreviousVectors(4, 8)
    assert in_batch_loss(scorer, batch).item() == pytest.approx(plain.item(), abs=1e-6)  # nothing was kept so far
    assert scorer.previous.entities.tolist() == [1, 2, 3, -1]
    torch.testing.assert_close(scorer.previous.vectors[:3], scorer.entity_vectors(torch.tensor([1, 2, 3])).detach())
    again = in_batch_loss(scorer.eval(), batch)  # evaluation keeps nothing
    assert scorer.previous.entities.tolist() == [1, 2, 3, -1]
    queries, table = scorer.query_vectors(batch.heads, batch.relations), scorer.entity_vectors()
    own = (queries * table[batch.heads]).sum(1, keepdim=True)
    block = queries @ table[[1, 2, 3]].T - 0.02 * torch.eye(3)
    older = 0.5 * (queries @ table[[1, 2, 3]].T).masked_fill(torch.eye(3, dtype=torch.bool), -torch.inf)
    target = torch.arange(3)
    rows = torch.cat([block, own, older], 1)
    expected = torch.nn.functional.cross_entropy(rows, target) + torch.nn.functional.cross_entropy(block.T, target)
    assert again.item() == pytest.approx(expected.item(), abs=1e-5)
    scorer.train()
    in_batch_loss(scorer, batch).backward()
    assert scorer.previous.entities.tolist() == [2, 3, 3, 1]  # a ring: the oldest go first
    assert "previous.vectors" in scorer.state_dict()
