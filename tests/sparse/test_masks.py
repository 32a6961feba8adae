"""Scores and the exact best k of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sparse_net import loss
from torch import nn

from tenfold.errors import UserError
from tenfold.sparse import find_mask, gradient_scores, sample_bernoulli, top_entries


def test_fisher_of_logistic_regression_is_the_closed_form_and_does_not_depend_on_batches():
    torch.manual_seed(0)
    model = nn.Linear(5, 1)
    inputs, labels = torch.randn(40, 5), torch.randint(0, 2, (40, 1)).float()

    def one(model, batch):
        return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    examples = [(inputs[i : i + 1], labels[i : i + 1]) for i in range(40)]
    scores, count = gradient_scores(model, dict(model.named_parameters()), one, examples, squared=True)
    error = torch.sigmoid(model(inputs)).detach() - labels
    assert count == 40
    torch.testing.assert_close(scores["weight"][0], (error.square() * inputs.square()).mean(0))
    torch.testing.assert_close(scores["bias"], error.square().mean(0))
    for chunk in (7, 40):
        batched, _ = gradient_scores(
            model, dict(model.named_parameters()), one, [(inputs, labels)], squared=True, chunk=chunk
        )
        torch.testing.assert_close(batched["weight"], scores["weight"])
    # Labels from the model: E[(y - p)^2] = p (1 - p).
    drawn, _ = gradient_scores(
        model,
        dict(model.named_parameters()),
        one,
        [(inputs.repeat(200, 1), labels.repeat(200, 1))],
        squared=True,
        chunk=2000,
        sampler=lambda model, batch, generator: (batch[0], sample_bernoulli(model(batch[0]), generator)),
    )
    shares = torch.sigmoid(model(inputs)).detach()
    torch.testing.assert_close(drawn["bias"], (shares * (1 - shares)).mean(0), rtol=0.05, atol=0)


def test_the_scale_of_the_loss_does_not_change_the_mask(net, batches):
    examples = [tokens[i : i + 1] for tokens in batches for i in range(4)]
    masks = {
        factor: find_mask(net, lambda m, x, f=factor: f * loss(m, x), examples, fraction=0.05)
        for factor in (1.0, 1000.0)
    }
    same = sum(
        torch.isin(index, masks[1000.0].entries[name]).sum().item() for name, index in masks[1.0].entries.items()
    )
    assert same >= masks[1.0].chosen - 1  # rounding may exchange two entries at the threshold


def test_exactly_k_entries_even_where_most_scores_are_zero(net, batches):
    examples = [tokens[:1] for tokens in batches]
    alive = sum(value.numel() for name, value in net.named_parameters() if "unused" not in name)
    mask = find_mask(net, loss, examples, fraction=0.02)
    assert mask.chosen == mask.wanted == round(0.02 * (alive + 2550))
    assert not any("unused" in name for name in mask.entries)
    everything = find_mask(net, loss, examples, fraction=0.9)
    assert everything.chosen <= alive < everything.wanted  # fewer are right when fewer matter
    assert "head.weight" not in everything.entries  # tied: once, under its first name
    ties = top_entries({"a": torch.ones(4), "b": torch.ones(4)}, 5)
    assert ties.entries["a"].tolist() == [0, 1, 2, 3]
    assert ties.entries["b"].tolist() == [0]


def test_the_model_is_as_before(net, batches):
    net.mix.weight.requires_grad_(False)
    net.norm.eval()
    before = copy.deepcopy(net.state_dict())

    def train(model):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for tokens in batches:
            optimizer.zero_grad()
            loss(model, tokens).backward()
            optimizer.step()

    change = find_mask(net, fraction=0.05, criterion="change", train=train)
    find_mask(net, loss, [batches[0][:1]], fraction=0.1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.mix.weight.requires_grad
    assert net.training
    assert not net.norm.training
    assert change.chosen == change.wanted


@pytest.mark.parametrize("criterion", ["grad", "taylor", "magnitude", "random"])
def test_other_criteria(net, batches, criterion):
    examples = [tokens[:1] for tokens in batches]
    mask = find_mask(net, loss, examples, fraction=0.03, criterion=criterion, seed=5)
    again = find_mask(net, loss, examples, fraction=0.03, criterion=criterion, seed=5)
    assert mask.sha256 == again.sha256
    assert mask.chosen == mask.wanted
    if criterion == "magnitude":
        kept = torch.cat(
            [
                value.detach().flatten()[mask.dense(n).flatten()].abs()
                for n, value in net.named_parameters()
                if n in mask.entries
            ]
        )
        assert (
            kept.min() >= torch.cat([p.detach().flatten().abs() for p in net.parameters()]).topk(mask.chosen)[0].min()
        )


def test_granularities():
    torch.manual_seed(0)
    scores = {
        "query.weight": torch.rand(8, 6),
        "attention.output.dense.weight": torch.rand(6, 8),
        "bias": torch.rand(6),
    }
    rows = top_entries(scores, 30, granularity="row")
    assert all((rows.dense(name).flatten(1).float().mean(1) % 1 == 0).all() for name in rows.entries if name != "bias")
    assert rows.chosen <= 30
    columns = top_entries(scores, 20, granularity="column")
    assert all((columns.dense(name).float().mean(0) % 1 == 0).all() for name in columns.entries)
    heads = top_entries(scores, 24, granularity="head", heads=4)
    assert "bias" not in heads.entries
    for name in heads.entries:
        flags = heads.dense(name) if name == "query.weight" else heads.dense(name).T
        assert (flags.reshape(4, -1).float().mean(1) % 1 == 0).all()
    tensor = top_entries({"a": torch.full((3,), 2.0), "b": torch.ones(9)}, 4, granularity="tensor")
    assert list(tensor.entries) == ["a"]
    each = top_entries(scores, 51, per_tensor=True)
    assert {name: index.numel() for name, index in each.entries.items()} == {
        "query.weight": 24,
        "attention.output.dense.weight": 24,
        "bias": 3,
    }


def test_what_makes_no_sense_is_refused(net):
    with pytest.raises(UserError, match="fraction is a share"):
        find_mask(net, loss, [], fraction=0)
    with pytest.raises(UserError, match="at least one example"):
        find_mask(net, loss, [], fraction=0.1)
    with pytest.raises(UserError, match="fits no parameter"):
        find_mask(net, loss, [], fraction=0.1, exclude=["heads.*"])
    with pytest.raises(UserError, match="chooses nothing"):
        find_mask(net, lambda m, x: m.mix.weight.sum() * 0, [0], fraction=0.1)
    shared = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    shared[1].weight = nn.Parameter(shared[0].weight.detach().view(3, 3))
    with pytest.raises(UserError, match="two parameters in one memory"):
        find_mask(shared, fraction=0.5, criterion="magnitude")
