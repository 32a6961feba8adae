"""Frozen means frozen; all entries chosen means torch's own optimizers."""

import copy

import pytest
import torch
from sparse_net import Net, loss
from two_ranks import on_two_ranks

from tenfold.errors import UserError
from tenfold.sparse import SparseAdamW, SparseOptimizer, SparseSGD, SparseTuner, candidates, find_mask, top_entries


def every_entry(model, dense=()):
    parameters = candidates(model, dense=dense)
    return top_entries(
        {name: torch.ones_like(value) for name, value in parameters.items()}, sum(map(torch.numel, parameters.values()))
    )


def train(model, optimizer, batches, steps=20, accumulate=1):
    for step in range(steps):
        for part in range(accumulate):
            (loss(model, batches[(step + part) % len(batches)]) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("mode", ["packed", "masked"])
def test_all_entries_chosen_is_adamw_bit_for_bit(net, batches, accumulate, mode):
    other = copy.deepcopy(net)
    train(net, SparseAdamW(net, every_entry(net), 1e-2, weight_decay=0.1, mode=mode), batches, accumulate=accumulate)
    train(
        other,
        torch.optim.AdamW(other.parameters(), 1e-2, weight_decay=0.1, foreach=False),
        batches,
        accumulate=accumulate,
    )
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_all_entries_chosen_is_sgd_and_clipping_is_torch_s(net, batches):
    other = copy.deepcopy(net)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    train(net, SparseSGD(net, every_entry(net), **settings, max_norm=0.1), batches)
    optimizer = torch.optim.SGD(other.parameters(), **settings, foreach=False)
    for step in range(20):
        loss(other, batches[step % 8]).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", [SparseAdamW, SparseSGD])
@pytest.mark.parametrize("decay_towards", ["zero", "start"])
def test_frozen_means_frozen(net, batches, kind, decay_towards):
    mask = find_mask(net, loss, [tokens[:1] for tokens in batches], fraction=0.03, dense=["mix.bias"])
    before = copy.deepcopy(dict(net.named_parameters()))
    more = {"momentum": 0.9} if kind is SparseSGD else {}
    optimizer = kind(
        net, mask, 0.05, weight_decay=0.1, dense=["mix.bias"], max_norm=1.0, decay_towards=decay_towards, **more
    )
    train(net, optimizer, batches, accumulate=2)
    for name, value in net.named_parameters():
        if name in mask.entries:
            chosen = mask.dense(name)
            assert torch.equal(value[~chosen], before[name][~chosen])
            assert not torch.equal(value[chosen], before[name][chosen])
        else:
            assert torch.equal(value, before[name]) == (name != "mix.bias")
    assert not net.unused.weight.requires_grad
    held = sum(
        state["exp_avg" if kind is SparseAdamW else "momentum_buffer"].numel() for state in optimizer.state.values()
    )
    assert held == mask.chosen + 8
    assert all(p.grad is None for name, p in net.named_parameters() if name in mask.entries)
    optimizer.release()
    assert net.unused.weight.requires_grad


def test_any_rule_of_torch_s_that_treats_entries_by_themselves(net, batches):
    other = copy.deepcopy(net)
    settings = {"lr": 1e-3, "momentum": 0.9}
    train(net, SparseOptimizer(net, every_entry(net), torch.optim.RMSprop, **settings), batches, steps=5)
    train(other, torch.optim.RMSprop(other.parameters(), **settings), batches, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="does not treat every entry by itself"):
        SparseOptimizer(net, None, torch.optim.Adafactor, dense=["mix.bias"])


def test_decay_towards_the_start_pulls_back(net):
    mask = top_entries({"mix.weight": torch.ones(8, 8)}, 64)
    start = net.mix.weight.detach().clone()
    optimizer = SparseAdamW(net, mask, 0.1, weight_decay=0.5, decay_towards="start", eps=1.0)
    with torch.no_grad():
        net.mix.weight += 1
    (net.mix.weight.sum() * 0).backward()
    optimizer.step()
    torch.testing.assert_close(net.mix.weight.detach() - start, torch.full((8, 8), 0.95))


def test_state_is_saved_and_only_for_the_same_mask(net, batches):
    mask = find_mask(net, loss, [batches[0][:1]], fraction=0.05)
    optimizer = SparseAdamW(net, mask, 1e-2)
    train(net, optimizer, batches, steps=3)
    other = copy.deepcopy(net)
    saved = copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, batches, steps=3)
    for parameter in other.parameters():
        parameter._post_accumulate_grad_hooks = None  # those of the first optimizer were copied along
    resumed = SparseAdamW(other, mask, 1e-2)
    resumed.load_state_dict(saved)
    train(other, resumed, batches, steps=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="another mask"):
        SparseAdamW(Net(), find_mask(net, fraction=0.05, criterion="random"), 1e-2).load_state_dict(saved)


def test_gradients_of_a_model_that_is_zeroed_do_not_pile_up(net, batches):
    """transformers' Trainer calls ``model.zero_grad()``, not the optimizer's."""
    other = copy.deepcopy(net)
    first, second = SparseAdamW(net, every_entry(net), 1e-2), SparseAdamW(other, every_entry(other), 1e-2)
    for tokens in batches:
        for model, optimizer, zero in ((net, first, net.zero_grad), (other, second, second.zero_grad)):
            loss(model, tokens).backward()
            optimizer.step()
            zero()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_mask_can_be_refreshed(net, batches):
    before = copy.deepcopy(net.state_dict())
    tuner = SparseTuner(net, find_mask(net, fraction=0.02, criterion="random", seed=1))
    train(net, tuner.adamw(0.1), batches, steps=3)
    tuner.refresh(find_mask(net, fraction=0.02, criterion="random", seed=2))
    train(net, tuner.adamw(0.1), batches, steps=3)
    trained = copy.deepcopy(net.state_dict())
    diff = tuner.diff()
    tuner.revert()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    from tenfold.sparse import apply_diff

    with apply_diff(net, diff):
        assert all(torch.equal(value, trained[name]) for name, value in net.state_dict().items())


def _plain_net():
    torch.manual_seed(3)
    return Net().eval()  # statistics of a batch are each process's own


def _tokens(count):
    return [torch.randint(0, 12, (4, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    def work(rank):
        net, batches = _plain_net(), _tokens(6)
        examples = [batches[i][rank : rank + 1] for i in (0, 1)]
        mask = find_mask(net, loss, examples, fraction=0.05, dense=["norm.bias"])
        optimizer = SparseAdamW(net, mask, 1e-2, dense=["norm.bias"], max_norm=0.5)
        for tokens in batches:
            loss(net, tokens[2 * rank : 2 * rank + 2]).backward()
            optimizer.step()
        if rank == 0:
            torch.save((net.state_dict(), mask.sha256), tmp_path / "weights.pt")

    on_two_ranks(work, tmp_path)
    state, sha256 = torch.load(tmp_path / "weights.pt")
    net, batches = _plain_net(), _tokens(6)
    examples = [batches[i][r : r + 1] for i in (0, 1) for r in (0, 1)]
    mask = find_mask(net, loss, examples, fraction=0.05, dense=["norm.bias"])
    optimizer = SparseAdamW(net, mask, 1e-2, dense=["norm.bias"], max_norm=0.5)
    for tokens in batches:
        loss(net, tokens).backward()
        optimizer.step()
    assert mask.sha256 == sha256
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-6)


def test_what_makes_no_sense_is_refused(net):
    mask = find_mask(net, fraction=0.05, criterion="random")
    with pytest.raises(UserError, match="in the mask and trained whole"):
        SparseAdamW(net, mask, dense=["mix.*"])
    with pytest.raises(UserError, match="another model"):
        SparseAdamW(torch.nn.Linear(2, 2), mask)
    with pytest.raises(UserError, match="AdamW refuses its settings: Invalid learning rate"):
        SparseAdamW(net, mask, -1.0)
    with pytest.raises(UserError, match="nothing to train"):
        SparseAdamW(net, None)
